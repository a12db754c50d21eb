"""An object store on this machine, in memory: python tests/object_store.py PORT."""

import sys

from gcp_storage_emulator import server
from gcp_storage_emulator.handlers import objects

_download = objects.download


def _with_generation(request, response, storage, *arguments, **options):
    """The number of a version, which TensorStore wants to see."""
    there = storage.objects.get(request.params["bucket_name"], {})
    found = there.get(request.params["object_id"])
    if found:
        response["x-goog-generation"] = found["generation"]
    return _download(request, response, storage, *arguments, **options)


if __name__ == "__main__":
    objects.download = _with_generation  # `objects.get` calls it
    for _, handlers in server.HANDLERS:
        for method, handler in handlers.items():
            if handler is _download:
                handlers[method] = _with_generation
    server.create_server(
        "127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="bucket"
    ).run()
