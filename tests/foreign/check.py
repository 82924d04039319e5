"""A client that shares no code with ours: grpcio, with stubs made from proto/, against a running world.

Usage: check.py PROTO_DIR READY_FILE COLLECTOR_PORT: the world exports its traces to that port of this machine. Prints
one line a check and closes with the count.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from concurrent import futures

import grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as text_format

proto_dir, ready_file = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
stubs = tempfile.mkdtemp()
files = [str(path) for path in sorted(proto_dir.glob("tropism/v1/*.proto"))]
command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{proto_dir}", f"--python_out={stubs}"]
subprocess.run(command + [f"--grpc_python_out={stubs}"] + files, check=True)
sys.path.insert(0, stubs)
from tropism.v1 import cluster_pb2, cluster_pb2_grpc, parked_pb2, parked_pb2_grpc  # noqa: E402
from tropism.v1 import placement_pb2, placement_pb2_grpc  # noqa: E402
from tropism.v1 import scope_pb2, scope_pb2_grpc, state_pb2, state_pb2_grpc  # noqa: E402

world = json.loads(ready_file.read_text())
channels = {r["name"]: grpc.insecure_channel(r["endpoint"].removeprefix("http://")) for r in world["regions"]}
state = {name: state_pb2_grpc.StateServiceStub(channel) for name, channel in channels.items()}
tokyo, dallas = state["tokyo"], state["dallas"]
checks = []


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes what the world exports."""

    def __init__(self, port):
        self.lock, self.spans = threading.Lock(), []
        server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, server)
        assert server.add_insecure_port(f"127.0.0.1:{port}"), f"port {port} is taken"
        server.start()
        self.server = server

    def Export(self, request, context):
        with self.lock:
            for resource in request.resource_spans:
                named = {a.key: a.value.string_value for a in resource.resource.attributes}
                for spans in resource.scope_spans:
                    self.spans += [(named["tropism.region"], span) for span in spans.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def of(self, trace_id):
        with self.lock:
            return [(region, span) for region, span in self.spans if span.trace_id.hex() == trace_id]


collector = Collector(int(sys.argv[3]))


def check(function):
    checks.append(function)
    return function


def json_value(text):
    return state_pb2.Value(json=text.encode())


def refused(call, code, reason, field=None):
    """The call fails with this code and google.rpc details."""
    try:
        call()
    except grpc.RpcError as error:
        assert error.code() == code, f"{error.code()}: {error.details()}"
        details = rpc_status.from_call(error)
        assert details is not None, "no details"
        found, fields = None, []
        for detail in details.details:
            info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
            if detail.Unpack(info):
                found = info.reason
            if detail.Unpack(bad):
                fields = [violation.field for violation in bad.field_violations]
        assert found == reason, f"{found}, not {reason}"
        assert field is None or field in fields, f"{fields}, not {field}"
        return
    raise AssertionError("it was accepted")


def eventually(call, expected):
    deadline = time.monotonic() + 30
    while (value := call()) != expected:
        assert time.monotonic() < deadline, f"{value}, not {expected}"
        time.sleep(0.05)


def eventually_ok(call):
    """The answer of a call that may be asked too early: the directory begins when all nodes have met."""
    until = time.monotonic() + 30
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE or time.monotonic() > until:
                raise
        time.sleep(0.1)


@check
def every_region_is_healthy():
    for channel in channels.values():
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


@check
def a_document_written_in_tokyo_is_read_in_dallas_with_the_token():
    put = tokyo.Put(
        state_pb2.PutRequest(scope="shop/carts", key="py", value=json_value('{"b": 1, "a": [1, 2]}')), timeout=10
    )
    got = dallas.Get(state_pb2.GetRequest(scope="shop/carts", key="py", token=put.answer.token), timeout=10)
    assert got.entry.value.json == b'{"a":[1,2],"b":1}', got
    assert got.answer.region == "dallas" and got.entry.version == put.result.version


@check
def a_put_at_a_base_version_merges_with_what_came_between():
    first = tokyo.Put(state_pb2.PutRequest(scope="shop/carts", key="m", value=json_value('{"a":1}')), timeout=10)
    tokyo.Put(state_pb2.PutRequest(scope="shop/carts", key="m", value=json_value('{"a":1,"b":2}')), timeout=10)
    request = state_pb2.PutRequest(
        scope="shop/carts", key="m", value=json_value('{"a":9}'), base_version=first.result.version
    )
    tokyo.Put(request, timeout=10)
    got = tokyo.Get(state_pb2.GetRequest(scope="shop/carts", key="m"), timeout=10)
    assert got.entry.value.json == b'{"a":9,"b":2}', got


@check
def counters_of_two_regions_add_up():
    for stub in (tokyo, dallas):
        stub.Increment(state_pb2.IncrementRequest(scope="stats/py", key="n", by=21), timeout=10)
    for stub in state.values():
        eventually(lambda: stub.Get(state_pb2.GetRequest(scope="stats/py", key="n")).entry.value.counter, 42)


@check
def a_request_id_has_one_effect():
    options = state_pb2.WriteOptions(request_id=b"0123456789abcdef")
    request = state_pb2.IncrementRequest(scope="stats/py", key="once", by=1, options=options)
    first, second = (tokyo.Increment(request, timeout=10) for _ in range(2))
    assert first.value == second.value == 1 and second.result.replayed


@check
def registers_expire():
    value = state_pb2.Value(register=state_pb2.Register(content=b"\x00\xff", content_type="x/y"))
    expiry = state_pb2.Expiry(ttl_ms=300)
    tokyo.Put(state_pb2.PutRequest(scope="cache/py", key="k", value=value, expiry=expiry), timeout=10)
    got = tokyo.Get(state_pb2.GetRequest(scope="cache/py", key="k"), timeout=10)
    assert got.entry.value.register.content == b"\x00\xff"
    eventually(lambda: tokyo.Get(state_pb2.GetRequest(scope="cache/py", key="k")).HasField("entry"), False)


@check
def a_scan_is_in_key_order():
    for key in ("c", "a", "b"):
        tokyo.Put(state_pb2.PutRequest(scope="shop/scan", key=key, value=json_value("{}")), timeout=10)
    pages = tokyo.Scan(state_pb2.ScanRequest(scope="shop/scan"), timeout=10)
    assert [entry.key for page in pages for entry in page.entries] == ["a", "b", "c"]


@check
def a_watch_shows_a_change_of_another_region():
    stream = dallas.Watch(state_pb2.WatchRequest(scope="shop/watch", initial_values=True), timeout=30)
    for response in stream:
        kinds = [event.type for event in response.events]
        if state_pb2.WATCH_EVENT_TYPE_CURRENT in kinds:
            tokyo.Put(state_pb2.PutRequest(scope="shop/watch", key="w", value=json_value('{"x":1}')), timeout=10)
        if any(event.type == state_pb2.WATCH_EVENT_TYPE_PUT and event.entry.key == "w" for event in response.events):
            stream.cancel()
            return
    raise AssertionError("the stream ended")


@check
def stamps_are_unique_and_rise():
    stamps = tokyo.Stamp(state_pb2.StampRequest(scope="shop/carts", count=50), timeout=10).stamps
    assert list(stamps) == sorted(set(stamps)) and len(stamps) == 50


@check
def the_cluster_and_its_scopes_are_told():
    cluster = cluster_pb2_grpc.ClusterServiceStub(channels["tokyo"])
    assert {region.name for region in cluster.ListRegions(cluster_pb2.ListRegionsRequest()).regions} == set(channels)
    scope = scope_pb2_grpc.ScopeServiceStub(channels["tokyo"]).GetScope(scope_pb2.GetScopeRequest(name="shop/carts"))
    assert len(scope.scope.serving) == 3


@check
def members_of_a_scope_are_compared():
    tokyo.Put(state_pb2.PutRequest(scope="shop/carts", key="compared", value=json_value("{}")), timeout=10)
    scopes = scope_pb2_grpc.ScopeServiceStub(channels["tokyo"])
    answer = scopes.VerifyScope(scope_pb2.VerifyScopeRequest(name="shop/carts"), timeout=30)
    assert answer.result == scope_pb2.VERIFY_RESULT_EQUAL and not answer.keys, answer
    assert not answer.HasField("next_shard") and answer.region == "tokyo", answer
    assert [len(shard.members) for shard in answer.shards] == [3] * answer.spread, answer
    beyond = scope_pb2.VerifyScopeRequest(name="shop/carts", first_shard=answer.spread)
    refused(lambda: scopes.VerifyScope(beyond), grpc.StatusCode.INVALID_ARGUMENT, "BAD_NUMBER", "first_shard")


def scopes_of(region):
    return scope_pb2_grpc.ScopeServiceStub(channels[region])


def served_by(name):
    """Where a scope is, by every region; none while it is on its way, or they do not agree or have not heard of it."""
    request = scope_pb2.GetScopeRequest(name=name)
    try:
        found = [scopes_of(region).GetScope(request, timeout=10).scope for region in channels]
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.NOT_FOUND:
            return None
        raise
    there = all(not scope.goal and not scope.learners and not scope.leaving for scope in found)
    return sorted(found[0].serving) if there and len({tuple(scope.serving) for scope in found}) == 1 else None


@check
def a_scope_moves_and_is_answered_for_everywhere():
    request = {"scope": "shop/moved", "key": "alice"}
    dallas.Put(state_pb2.PutRequest(**request, value=json_value('{"at":"dallas"}')), timeout=10)
    move = scope_pb2.MoveScopeRequest(name="shop/moved", regions=["tokyo"])
    assert eventually_ok(lambda: scopes_of("dallas").MoveScope(move, timeout=10)).scope.goal == ["tokyo"]
    eventually(lambda: served_by("shop/moved"), ["tokyo"])
    assert json.loads(tokyo.Get(state_pb2.GetRequest(**request), timeout=10).entry.value.json) == {"at": "dallas"}
    got = dallas.Get(state_pb2.GetRequest(**request), timeout=10)
    assert (got.answer.region, json.loads(got.entry.value.json)) == ("tokyo", {"at": "dallas"}), got
    dallas.Put(state_pb2.PutRequest(**request, value=json_value('{"at":"tokyo"}')), timeout=10)
    assert json.loads(tokyo.Get(state_pb2.GetRequest(**request), timeout=10).entry.value.json) == {"at": "tokyo"}
    again = (("tropism-forwarded-by", "dallas-1"),)  # what was forwarded is forwarded no further
    elsewhere = lambda: dallas.Get(state_pb2.GetRequest(**request), timeout=10, metadata=again)  # noqa: E731
    refused(elsewhere, grpc.StatusCode.UNAVAILABLE, "NOT_SERVED_HERE")
    nowhere = scope_pb2.MoveScopeRequest(name="shop/moved", regions=["atlantis"])
    refused(lambda: scopes_of("dallas").MoveScope(nowhere), grpc.StatusCode.NOT_FOUND, "REGION_NOT_FOUND", "regions")


@check
def a_scope_that_follows_its_use_is_explained():
    request = {"scope": "roam/games", "key": "alice"}
    tokyo.Put(state_pb2.PutRequest(**request, value=json_value('{"level":1}')), timeout=10)
    placement = placement_pb2_grpc.PlacementServiceStub(channels["dallas"])
    explained = placement.ExplainScope(placement_pb2.ExplainScopeRequest(name="roam/games"), timeout=10)
    assert explained.steward == "frankfurt-1" and list(explained.current.regions) == ["frankfurt"], explained
    assert [use.region for use in explained.uses] == sorted(channels), explained
    still = placement.ExplainScope(placement_pb2.ExplainScopeRequest(name="shop/carts"), timeout=10)
    assert still.mode == placement_pb2.PLACEMENT_MODE_FIXED and not still.HasField("current"), still
    unknown = placement_pb2.ExplainScopeRequest(name="Not A Scope")
    refused(lambda: placement.ExplainScope(unknown), grpc.StatusCode.INVALID_ARGUMENT, "BAD_SCOPE", "name")
    events = placement.ListPlacementEvents(placement_pb2.ListPlacementEventsRequest(), timeout=10).events
    assert all(a.number < b.number for a, b in zip(events, events[1:])), events


@check
def a_dropped_scope_is_gone_in_every_region_and_created_anew_is_empty():
    request = {"scope": "shop/dropped", "key": "alice"}
    dallas.Put(state_pb2.PutRequest(**request, value=json_value("{}")), timeout=10)
    drop = scope_pb2.DropScopeRequest(name="shop/dropped")
    dropped = eventually_ok(lambda: scopes_of("dallas").DropScope(drop, timeout=10))
    assert dropped.visible_keys == 1 and dropped.epoch > 1, dropped

    def is_gone():
        for stub in state.values():
            try:
                stub.Get(state_pb2.GetRequest(**request), timeout=10)
                return False
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.FAILED_PRECONDITION:
                    raise
        return True

    eventually(is_gone, True)
    scopes_of("tokyo").CreateScope(scope_pb2.CreateScopeRequest(name="shop/dropped"), timeout=10)
    eventually(lambda: served_by("shop/dropped"), sorted(channels))
    assert not dallas.Get(state_pb2.GetRequest(**request), timeout=10).HasField("entry")


@check
def keys_that_are_not_parked_say_so_and_nothing_is_dropped_by_mistake():
    parked = parked_pb2_grpc.ParkedServiceStub(channels["tokyo"])
    listed = parked.ListParked(parked_pb2.ListParkedRequest(every_key=True), timeout=10)
    assert not listed.keys and listed.region == "tokyo" and listed.node, listed
    tokyo.Put(state_pb2.PutRequest(scope="shop/carts", key="whole", value=json_value("{}")), timeout=10)
    known = {"node": listed.node, "scope": "shop/carts", "key": "whole"}
    failed, invalid = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT
    refused(lambda: parked.GetParked(parked_pb2.GetParkedRequest(**known)), failed, "NOT_PARKED", "key")
    refused(lambda: parked.RetryParked(parked_pb2.RetryParkedRequest(**known)), failed, "NOT_PARKED", "key")
    request = parked_pb2.DropParkedRequest(**known)
    refused(lambda: parked.DropParked(request), invalid, "MISSING_FIELD", "confirm")
    request = parked_pb2.DropParkedRequest(**(known | {"node": "elsewhere"}), confirm=True)
    refused(lambda: parked.DropParked(request), failed, "WRONG_NODE", "node")


@check
def a_write_is_one_trace_through_all_regions():
    trace_id, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    metadata = [("traceparent", f"00-{trace_id}-{parent}-01")]
    request = state_pb2.PutRequest(scope="shop/carts", key="traced", value=json_value('{"a":"hidden"}'))
    tokyo.Put(request, timeout=10, metadata=metadata)
    eventually(lambda: len(collector.of(trace_id)), 4)
    spans = {(region, span.name): span for region, span in collector.of(trace_id)}
    call, commit = spans["tokyo", "tropism.v1.StateService/Put"], spans["tokyo", "commit"]
    assert call.parent_span_id.hex() == parent and commit.parent_span_id == call.span_id, spans
    others = [spans[region, "apply"] for region in channels if region != "tokyo"]
    assert len(others) == 2 and all(apply.parent_span_id == commit.span_id for apply in others), spans
    assert "hidden" not in str(spans) and "traced" not in str(spans), spans


def scrape(region, accept="text/plain"):
    """Metrics of the region's first node by name and labels, read by a parser that is not ours."""
    node = next(r for r in world["regions"] if r["name"] == region)["nodes"][0]
    request = urllib.request.Request(node["metrics"], headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as answer:
        is_open = answer.headers["Content-Type"].startswith("application/openmetrics-text")
        assert is_open == accept.startswith("application/openmetrics-text"), answer.headers["Content-Type"]
        families = list((open_metrics if is_open else text_format)(answer.read().decode()))
    samples = [sample for family in families for sample in family.samples]
    found = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
    assert len(found) == len(samples), "a series is there twice"
    return found


def series(name, **labels):
    return (name, frozenset(labels.items()))


@check
def metrics_of_every_region_are_read_by_prometheus_own_parsers():
    put = series(
        "rpc_server_calls_total", rpc_method="tropism.v1.StateService/Put", rpc_response_status_code="INVALID_ARGUMENT"
    )
    before = scrape("tokyo").get(put, 0)
    for _ in range(3):
        refused(lambda: tokyo.Put(state_pb2.PutRequest(key="k")), grpc.StatusCode.INVALID_ARGUMENT, "BAD_SCOPE")
    for region in channels:
        for accept in ("text/plain", "application/openmetrics-text;version=1.0.0"):
            found = scrape(region, accept)
            assert found[series("tropism_node_state", state="serving")] == 1, found
            assert len(found) <= 5000, len(found)
    eventually(lambda: scrape("tokyo").get(put, 0), before + 3)  # what is told may be 100 ms old


@check
def metrics_show_how_late_the_writes_of_another_region_were():
    labels = {"from_region": "tokyo", "to_region": "dallas"}
    count, total = (series(f"tropism_replication_lag_seconds_{part}", **labels) for part in ("count", "sum"))
    before, most = scrape("dallas"), 0
    for n in range(10):
        began = time.time()
        value = json_value(f'{{"n":{n}}}')
        put = tokyo.Put(state_pb2.PutRequest(scope="shop/carts", key="late", value=value), timeout=10)
        dallas.Get(state_pb2.GetRequest(scope="shop/carts", key="late", token=put.answer.token), timeout=10)
        most += time.time() - began + 0.001  # stamps are whole milliseconds
    eventually(lambda: scrape("dallas")[count] - before[count], 10)
    reported = scrape("dallas")[total] - before[total]
    least = 10 * world["places"]["tokyo"]["rtt_ms"]["dallas-1"] / 2 / 1000  # what the way alone takes
    assert least <= reported <= most, f"{reported} s reported, {least} s to {most} s is true"
    idle_since = time.time()
    staleness = series("tropism_replication_staleness_seconds", **labels)
    # Although nobody writes, what may be missing is ever younger than the last write.
    eventually(lambda: scrape("dallas")[staleness] < time.time() - idle_since, True)


@check
def reflection_lists_the_services():
    services = ProtoReflectionDescriptorDatabase(channels["tokyo"]).get_services()
    assert "tropism.v1.StateService" in services, services


@check
def bad_input_is_refused_with_field_and_reason():
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    get, put = tokyo.Get, tokyo.Put
    refused(lambda: get(state_pb2.GetRequest(scope="", key="k")), invalid, "BAD_SCOPE", "scope")
    refused(lambda: get(state_pb2.GetRequest(scope="a//b", key="k")), invalid, "BAD_SCOPE", "scope")
    refused(lambda: get(state_pb2.GetRequest(scope="shop/x", key="")), invalid, "BAD_KEY", "key")
    refused(lambda: get(state_pb2.GetRequest(scope="shop/x", key="k" * 513)), invalid, "BAD_KEY", "key")
    for text in ("{", "[1]", '{"a":1,"a":2}', '{"n":1e999}', "{}x"):
        request = state_pb2.PutRequest(scope="shop/x", key="bad", value=json_value(text))
        try:
            put(request, timeout=10)
        except grpc.RpcError as error:
            assert error.code() == invalid, f"{text}: {error.code()}"
        else:
            raise AssertionError(f"{text} was accepted")
    deep = "[" * 5000 + "]" * 5000
    try:
        put(state_pb2.PutRequest(scope="shop/x", key="bad", value=json_value('{"a":' + deep + "}")), timeout=10)
        raise AssertionError("5000 levels were accepted")
    except grpc.RpcError as error:
        assert error.code() in (invalid, grpc.StatusCode.RESOURCE_EXHAUSTED), error.code()
    assert not get(state_pb2.GetRequest(scope="shop/x", key="bad"), timeout=10).HasField("entry")


@check
def garbage_instead_of_a_message_is_an_invalid_argument():
    call = channels["tokyo"].unary_unary("/tropism.v1.StateService/Get")
    refused(lambda: call(b"\xff\xff\xff", timeout=10), grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")


passed = failed = 0
for function in checks:
    try:
        function()
        passed += 1
        print(f"ok      {function.__name__}")
    except Exception as error:  # noqa: BLE001: every failure is told
        failed += 1
        print(f"FAILED  {function.__name__}: {type(error).__name__}: {error}")
print(f"{passed} passed, {failed} failed")
sys.exit(1 if failed else 0)
