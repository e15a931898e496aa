"""The protocol's gRPC messages, built as protobuf descriptors when this is imported: no generated code to keep.

They have a descriptor pool of their own, so that a client's generated modules can live in the same process. What the
wire knows is kept, numbers and types; messages that the protocol nests in others stand beside them here. Field names
are those of the HTTP documents, which ``json_format.ParseDict`` therefore turns into messages.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"
DATA_TYPES = (
    "INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64",
    "STRING",
)  # fmt: skip

# Message -> "number name type". A type may be "repeated"; "one of" the message's fields is set; "parameters" is a map
# of texts to InferParameter. Types of protobuf begin with a small letter.
_VERSIONED = ("1 name string", "2 version string")
_PARAMETERS = "parameters"
_MESSAGES: dict[str, tuple[str, ...]] = {
    "ServerLiveRequest": (),
    "ServerLiveResponse": ("1 live bool",),
    "ServerReadyRequest": (),
    "ServerReadyResponse": ("1 ready bool",),
    "ServerMetadataRequest": (),
    "ServerMetadataResponse": ("1 name string", "2 version string", "3 extensions repeated string"),
    "ModelReadyRequest": _VERSIONED,
    "ModelReadyResponse": ("1 ready bool",),
    "ModelMetadataRequest": _VERSIONED,
    "ModelMetadataResponse": (
        "1 name string", "2 versions repeated string", "3 platform string", "4 inputs repeated TensorMetadata",
        "5 outputs repeated TensorMetadata",
    ),
    "TensorMetadata": ("1 name string", "2 datatype string", "3 shape repeated int64"),
    "ModelConfigRequest": _VERSIONED,
    "ModelConfigResponse": ("1 config ModelConfig",),
    "ModelConfig": (
        "1 name string", "2 platform string", "17 backend string", "4 max_batch_size int32",
        "5 input repeated ModelInput", "6 output repeated ModelOutput",
    ),
    "ModelInput": ("1 name string", "2 data_type DataType", "4 dims repeated int64"),
    "ModelOutput": ("1 name string", "2 data_type DataType", "3 dims repeated int64"),
    "ModelStatisticsRequest": _VERSIONED,
    "ModelStatisticsResponse": ("1 model_stats repeated ModelStatistics",),
    "ModelStatistics": (
        "1 name string", "2 version string", "3 last_inference uint64", "4 inference_count uint64",
        "5 execution_count uint64", "6 inference_stats InferStatistics",
    ),
    "InferStatistics": (
        "1 success StatisticDuration", "2 fail StatisticDuration", "3 queue StatisticDuration",
        "4 compute_input StatisticDuration", "5 compute_infer StatisticDuration", "6 compute_output StatisticDuration",
        "7 cache_hit StatisticDuration", "8 cache_miss StatisticDuration",
    ),
    "StatisticDuration": ("1 count uint64", "2 ns uint64"),
    "RepositoryIndexRequest": ("1 repository_name string", "2 ready bool"),
    "RepositoryIndexResponse": ("1 models repeated ModelIndex",),
    "ModelIndex": ("1 name string", "2 version string", "3 state string", "4 reason string"),
    "ModelInferRequest": (
        "1 model_name string", "2 model_version string", "3 id string", "4 parameters parameters",
        "5 inputs repeated InferInputTensor", "6 outputs repeated InferRequestedOutputTensor",
        "7 raw_input_contents repeated bytes",
    ),
    "InferInputTensor": (
        "1 name string", "2 datatype string", "3 shape repeated int64", "4 parameters parameters",
        "5 contents InferTensorContents",
    ),
    "InferRequestedOutputTensor": ("1 name string", "2 parameters parameters"),
    "ModelInferResponse": (
        "1 model_name string", "2 model_version string", "3 id string", "4 parameters parameters",
        "5 outputs repeated InferOutputTensor", "6 raw_output_contents repeated bytes",
    ),
    "InferOutputTensor": ("1 name string", "2 datatype string", "3 shape repeated int64", "4 parameters parameters"),
    "InferParameter": (
        "1 bool_param one of bool", "2 int64_param one of int64", "3 string_param one of string",
        "4 double_param one of double", "5 uint64_param one of uint64",
    ),
    "InferTensorContents": (
        "1 bool_contents repeated bool", "2 int_contents repeated int32", "3 int64_contents repeated int64",
        "4 uint_contents repeated uint32", "5 uint64_contents repeated uint64", "6 fp32_contents repeated float",
        "7 fp64_contents repeated double", "8 bytes_contents repeated bytes",
    ),
}  # fmt: skip

NAMES = tuple(_MESSAGES)


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="superserve/inference.proto", package=PACKAGE, syntax="proto3")
    data_type = file.enum_type.add(name="DataType")
    for number, name in enumerate(DATA_TYPES):
        data_type.value.add(name=f"TYPE_{name}", number=number)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field in fields:
            _add(message, *field.split(" ", 2))
    return file


def _add(message: descriptor_pb2.DescriptorProto, number: str, name: str, kind: str) -> None:
    """Add a field as ``_MESSAGES`` writes it."""
    kinds = descriptor_pb2.FieldDescriptorProto
    field = message.field.add(name=name, number=int(number), label=kinds.LABEL_OPTIONAL)
    if kind == _PARAMETERS:
        entry = message.nested_type.add(name="ParametersEntry", options={"map_entry": True})
        _add(entry, "1", "key", "string")
        _add(entry, "2", "value", "InferParameter")
        kind = f"repeated {message.name}.ParametersEntry"
    if kind.startswith("repeated "):
        field.label = kinds.LABEL_REPEATED
    elif kind.startswith("one of "):
        if not message.oneof_decl:
            message.oneof_decl.add(name="choice")
        field.oneof_index = 0
    kind = kind.rpartition(" ")[2]
    if kind[0].islower():
        field.type = kinds.Type.Value(f"TYPE_{kind.upper()}")
    else:
        field.type = kinds.TYPE_ENUM if kind == "DataType" else kinds.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{kind}"


_pool = descriptor_pool.DescriptorPool()
_pool.Add(_file())


def message_class(name: str) -> Any:
    """Return the class of a message of the protocol; KeyError if there is none of this name."""
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))
