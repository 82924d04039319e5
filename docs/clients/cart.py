"""A cart in Python: the nearest node, a session, and calls that are repeated only where that cannot do harm.

Usage: cart.py ENDPOINT ..., with the stubs of proto/tropism/v1 on the path. Checks itself.
"""

import itertools
import json
import secrets
import sys
import time

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tropism.v1 import cluster_pb2, cluster_pb2_grpc, state_pb2, state_pb2_grpc


class Tropism:
    """A session with a cluster. One call at a time."""

    def __init__(self, endpoints, timeout=10):
        channels = [grpc.insecure_channel(endpoint.removeprefix("http://")) for endpoint in endpoints]
        self.nodes = [state_pb2_grpc.StateServiceStub(channel) for channel in sorted(channels, key=distance)]
        self.token, self.timeout = b"", timeout

    def read(self, method, request):
        request.token = self.token
        return self.call(method, request, writes=False)

    def write(self, method, request):
        request.options.token = self.token
        request.options.request_id = secrets.token_bytes(16)  # once a write: repeated, it takes effect once
        return self.call(method, request, writes=True)

    def call(self, method, request, writes):
        until, node, unsettled = time.monotonic() + self.timeout, 0, False
        for attempt in itertools.count():
            try:
                left = max(until - time.monotonic(), 0.001)
                answer = getattr(self.nodes[node], method)(request, timeout=left)
                self.token = answer.answer.token
                return answer
            except grpc.RpcError as error:
                reason, effect = why(error)
                lost = reason is None and error.code() == grpc.StatusCode.UNAVAILABLE
                again = reason in ("OUTCOME_UNKNOWN", "OVERLOADED") or (lost and writes)
                elsewhere = lost or (error.code() == grpc.StatusCode.UNAVAILABLE and effect == "none")
                pause = min(0.05 * 2**attempt, 1) * (0.5 + secrets.randbelow(500) / 1000)
                if not (again or elsewhere) or time.monotonic() + pause > until:
                    raise
                # Only the node that may have written can say whether it did.
                unsettled = unsettled or (writes and (lost or reason == "OUTCOME_UNKNOWN"))
                if elsewhere and not again and not unsettled:
                    node = (node + 1) % len(self.nodes)
                time.sleep(pause)


def distance(channel):
    """The shortest of three round trips, in seconds."""
    cluster, took = cluster_pb2_grpc.ClusterServiceStub(channel), []
    for _ in range(3):
        begun = time.monotonic()
        try:
            cluster.ListNodes(cluster_pb2.ListNodesRequest(), timeout=2)
        except grpc.RpcError:
            return float("inf")
        took.append(time.monotonic() - begun)
    return min(took)


def why(error):
    """The reason of an error and what happened to the state; (None, None) when no node of Tropism said it."""
    details = rpc_status.from_call(error)
    for detail in details.details if details else []:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == "tropism.dev":
            return info.reason, info.metadata["effect"]
    return None, None


if __name__ == "__main__":
    here, key = Tropism(sys.argv[1:]), f"py-{secrets.token_hex(4)}"
    cart = {"items": {"tea": {"n": 2}}, "note": "hi"}
    put = state_pb2.PutRequest(scope="shop/carts", key=key, value=state_pb2.Value(json=json.dumps(cart).encode()))
    here.write("Put", put)
    add = state_pb2.PatchOperation(path="/items/tea/n", increment=3)
    patch = state_pb2.PatchRequest(
        scope="shop/carts", key=key, operations=state_pb2.PatchOperations(operations=[add])
    )
    here.write("Patch", patch)

    there = Tropism(sys.argv[:0:-1])
    there.token = here.token  # the session goes on, in whichever region
    got = there.read("Get", state_pb2.GetRequest(scope="shop/carts", key=key))
    print(got.answer.region, got.entry.value.json.decode())
    assert json.loads(got.entry.value.json) == {"items": {"tea": {"n": 5}}, "note": "hi"}
    try:
        here.write("Put", state_pb2.PutRequest(scope="shop//carts", key=key, value=put.value))
        raise AssertionError("it was accepted")
    except grpc.RpcError as error:
        assert why(error) == ("BAD_SCOPE", "none"), why(error)
    assert here.write("Delete", state_pb2.DeleteRequest(scope="shop/carts", key=key)).was_visible
    print("ok")
