# The images of compose.yaml, one target each: gateway, scheduler, loadgen (no torch), worker, and entry and redis beside them.
#
# Dependencies stand in layers that only pyproject.toml, constraints.txt and wheels/ can outdate; the code lies over them
# as one small layer, so a change of code rebuilds in seconds. pip and setuptools stay behind in the builders.
#
# pip takes packages from wheels/ (optional, made by `pip download -d wheels`) and from the index that the build arguments
# PIP_INDEX_URL, PIP_EXTRA_INDEX_URL and PIP_NO_INDEX tell it, as its environment variables of these names do elsewhere.
# Where that index's torch is a CUDA build, a CPU build in wheels/ saves some gigabytes.

ARG PYTHON_IMAGE=python:3.11-slim
ARG ENTRY_IMAGE=${PYTHON_IMAGE}
ARG REDIS_IMAGE=valkey/valkey:9.1.2-alpine

FROM scratch AS wanted
# The pattern lets wheels/ be absent; its files land flat beside the two.
COPY pyproject.toml constraints.txt deploy/compose/requirements.py wheels* /

FROM ${PYTHON_IMAGE} AS builder
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_NO_INDEX
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_CACHE_DIR=1
RUN --mount=type=bind,from=wanted,target=/wanted \
    python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --find-links /wanted --constraint /wanted/constraints.txt setuptools

FROM builder AS core
RUN --mount=type=bind,from=wanted,target=/wanted \
    python3 -m venv --without-pip /opt/core \
    && python3 /wanted/requirements.py /wanted/pyproject.toml > /tmp/requirements.txt \
    && /opt/venv/bin/pip --python /opt/core/bin/python install \
        --find-links /wanted --constraint /wanted/constraints.txt --requirement /tmp/requirements.txt

FROM core AS grpc
RUN --mount=type=bind,from=wanted,target=/wanted \
    python3 /wanted/requirements.py /wanted/pyproject.toml grpc otel > /tmp/requirements.txt \
    && /opt/venv/bin/pip --python /opt/core/bin/python install \
        --find-links /wanted --constraint /wanted/constraints.txt --requirement /tmp/requirements.txt

FROM core AS plot
RUN --mount=type=bind,from=wanted,target=/wanted \
    python3 /wanted/requirements.py /wanted/pyproject.toml plot > /tmp/requirements.txt \
    && /opt/venv/bin/pip --python /opt/core/bin/python install \
        --find-links /wanted --constraint /wanted/constraints.txt --requirement /tmp/requirements.txt

FROM core AS torch
RUN --mount=type=bind,from=wanted,target=/wanted \
    python3 /wanted/requirements.py /wanted/pyproject.toml worker > /tmp/requirements.txt \
    && /opt/venv/bin/pip --python /opt/core/bin/python install \
        --find-links /wanted --constraint /wanted/constraints.txt --requirement /tmp/requirements.txt

FROM builder AS code
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY common common
COPY services services
COPY loadgen loadgen
# The commands name the builder's Python, which stays behind.
RUN /opt/venv/bin/pip install --no-index --no-deps --no-build-isolation --target /opt/superserve . \
    && sed -i '1s|^#!.*|#!/usr/bin/env python3|' /opt/superserve/bin/*

FROM ${PYTHON_IMAGE} AS runtime
RUN useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin superserve
# Bytecode is compiled in the builders; the root file system is read-only.
ENV PATH=/opt/superserve/bin:/opt/core/bin:$PATH PYTHONPATH=/opt/superserve \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
COPY deploy/compose/healthy.py /usr/local/bin/healthy
WORKDIR /tmp
USER 10001:10001

FROM runtime AS gateway
COPY --from=grpc /opt/core /opt/core
COPY --from=code /opt/superserve /opt/superserve
EXPOSE 8000 8001 9100
ENTRYPOINT ["python", "-m", "services.cli", "gateway"]

FROM runtime AS scheduler
COPY --from=core /opt/core /opt/core
COPY --from=code /opt/superserve /opt/superserve
EXPOSE 9100
ENTRYPOINT ["python", "-m", "services.cli", "scheduler"]

FROM runtime AS loadgen
COPY --from=plot /opt/core /opt/core
COPY --from=code /opt/superserve /opt/superserve
ENV MPLCONFIGDIR=/tmp
ENTRYPOINT ["python", "-m", "loadgen"]

FROM runtime AS worker
USER root
RUN install --directory --owner 10001 --group 10001 /var/cache/superserve
USER 10001:10001
ENV SUPERSERVE_CACHE_DIR=/var/cache/superserve
COPY --from=torch /opt/core /opt/core
COPY --from=code /opt/superserve /opt/superserve
EXPOSE 9100
ENTRYPOINT ["python", "-m", "services.cli", "worker"]

# The one published port: HAProxy before any number of gateways. ENTRY_IMAGE may be one that has HAProxy already.
FROM ${ENTRY_IMAGE} AS entry
USER root
RUN command -v haproxy > /dev/null \
    || { apt-get update -qq && apt-get install -y -qq --no-install-recommends haproxy && rm -rf /var/lib/apt/lists/*; }
COPY deploy/compose/haproxy.cfg /etc/superserve/haproxy.cfg
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGUSR1
ENTRYPOINT ["haproxy", "-W", "-db", "-f", "/etc/superserve/haproxy.cfg"]

FROM ${REDIS_IMAGE} AS redis
USER root
RUN mkdir -p /data && chown -R 10001:10001 /data
COPY deploy/compose/redis.conf /etc/superserve/redis.conf
COPY --chmod=0755 deploy/compose/redis-start /usr/local/bin/redis-start
USER 10001:10001
ENTRYPOINT ["redis-start"]
