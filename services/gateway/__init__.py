"""The gateway: Open Inference Protocol v2 over HTTP in, packs of queries on the ingress stream out."""

from services.gateway.app import Gateway

__all__ = ["Gateway"]
