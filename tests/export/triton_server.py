"""What Triton does with a repository, as far as these tests need it: its configurations' schema and its python backend.

The schema has the fields of `model_config.proto` (triton-inference-server/common) that we write, under their numbers;
protobuf's own parser refuses any other, as the server does.
"""

import importlib.util
import json
import sys
from types import SimpleNamespace

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory, text_format

STRING, INT32, INT64, UINT64, ENUM, MESSAGE = 9, 5, 3, 4, 14, 11
ENUMS = {
    "DataType": {"TYPE_INVALID": 0, "TYPE_UINT8": 2, "TYPE_FP32": 11, "TYPE_STRING": 13},
    "Kind": {"KIND_AUTO": 0, "KIND_GPU": 1, "KIND_CPU": 2},
}
MESSAGES = {  # name: (field, number, type, whether it is repeated)
    "Input": [("name", 1, STRING, False), ("data_type", 2, "DataType", False), ("dims", 4, INT64, True)],
    "Output": [("name", 1, STRING, False), ("data_type", 2, "DataType", False), ("dims", 3, INT64, True)],
    "Group": [("count", 2, INT32, False), ("kind", 4, "Kind", False)],
    "Batching": [("preferred_batch_size", 1, INT32, True), ("max_queue_delay_microseconds", 2, UINT64, False)],
    "Mapped": [("key", 1, STRING, False), ("value", 2, STRING, False)],
    "Step": [
        ("model_name", 1, STRING, False),
        ("model_version", 2, INT64, False),
        ("input_map", 3, "Mapped", True),
        ("output_map", 4, "Mapped", True),
    ],
    "Ensemble": [("step", 1, "Step", True)],
    "Text": [("string_value", 1, STRING, False)],
    "Parameter": [("key", 1, STRING, False), ("value", 2, "Text", False)],
    "Config": [
        ("name", 1, STRING, False),
        ("platform", 2, STRING, False),
        ("backend", 17, STRING, False),
        ("max_batch_size", 4, INT32, False),
        ("input", 5, "Input", True),
        ("output", 6, "Output", True),
        ("instance_group", 7, "Group", True),
        ("dynamic_batching", 11, "Batching", False),
        ("parameters", 14, "Parameter", True),
        ("ensemble_scheduling", 15, "Ensemble", False),
    ],
}


def _config_class():
    file = descriptor_pb2.FileDescriptorProto(name="triton_config.proto", package="triton", syntax="proto3")
    for name, values in ENUMS.items():
        described = file.enum_type.add(name=name)
        for value, number in values.items():
            described.value.add(name=value, number=number)
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind, repeated in fields:
            added = message.field.add(name=field, number=number, label=3 if repeated else 1)
            if isinstance(kind, str):
                added.type, added.type_name = (ENUM if kind in ENUMS else MESSAGE), f".triton.{kind}"
            else:
                added.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("triton.Config"))


Config = _config_class()


def read_config(path):
    """A `config.pbtxt`, parsed; a field that is unknown or of another type is an error."""
    return text_format.Parse(path.read_text(), Config())


class Tensor:
    def __init__(self, name, values):
        self.name, self._values = name, values

    def as_numpy(self):
        return self._values


class PythonModel:
    """A model of the python backend, loaded as the server does: with its directory and utilities on the path."""

    def __init__(self, directory, monkeypatch):
        utilities = SimpleNamespace(
            Tensor=Tensor,
            TritonError=lambda message: message,
            InferenceResponse=lambda output_tensors, error=None: SimpleNamespace(outputs=output_tensors, error=error),
            get_input_tensor_by_name=lambda request, name: request[name],
        )
        monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utilities)
        monkeypatch.delitem(sys.modules, "picture_header", raising=False)
        monkeypatch.syspath_prepend(directory / "1")
        spec = importlib.util.spec_from_file_location("triton_model", directory / "1" / "model.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = json_format.MessageToDict(read_config(directory / "config.pbtxt"), preserving_proto_field_name=True)
        config["parameters"] = {each["key"]: each["value"] for each in config["parameters"]}  # the server's form: a map
        self._model = module.TritonPythonModel()
        self._model.initialize({"model_config": json.dumps(config)})

    def ask(self, *requests):
        """Each request is a list of encoded pictures; its answer is an array, or the message of an error."""
        arrays = [np.array(pictures, dtype=object).reshape(-1, 1) for pictures in requests]
        answers = self._model.execute([{"picture": Tensor("picture", array)} for array in arrays])
        assert len(answers) == len(requests)
        return [each.error or each.outputs[0].as_numpy() for each in answers]
