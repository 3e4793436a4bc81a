//! gRPC's own library on both ends of two sidecars: every kind of call, and every outcome of one.

use leno_tests::mesh::{Mesh, PORT, mtls, service};
use leno_tests::{Directory, fresh_ip, until};
use tokio::net::TcpStream;

use crate::{Program, free};

/// A gRPC server of raw bytes; the method's name gives its behaviour.
const SERVER: &str = r#"
import sys, time
from concurrent import futures
import grpc

def unary(request, context):
    context.set_trailing_metadata((("x-trailer", "t"), ("x-some-bin", b"\x00\xff")))
    context.send_initial_metadata((("x-initial", "i"),))
    return request

def fail(request, context):
    context.abort(grpc.StatusCode.NOT_FOUND, "no such user: ä%")

def slow(request, context):
    while context.is_active():
        time.sleep(0.02)
    print("cancelled", flush=True)
    return request

def download(request, context):
    for i in range(200):
        yield request * 100

def upload(requests, context):
    return str(sum(len(r) for r in requests)).encode()

def chat(requests, context):
    for request in requests:
        yield b"re: " + request

def half(request, context):
    yield b"one"
    context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "enough")

handlers = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "Slow": grpc.unary_unary_rpc_method_handler(slow),
    "Download": grpc.unary_stream_rpc_method_handler(download),
    "Upload": grpc.stream_unary_rpc_method_handler(upload),
    "Chat": grpc.stream_stream_rpc_method_handler(chat),
    "Half": grpc.unary_stream_rpc_method_handler(half),
}
server = grpc.server(futures.ThreadPoolExecutor(16), options=[("grpc.max_receive_message_length", -1)])
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", handlers),))
server.add_insecure_port(sys.argv[1])
server.start()
server.wait_for_termination()
"#;

/// A client that prints a line for each check.
const CLIENT: &str = r#"
import sys, threading, queue
import grpc

options = [("grpc.default_authority", "echo:80"), ("grpc.max_receive_message_length", -1)]
channel = grpc.insecure_channel(sys.argv[1], options)
T = 20

def check(name, held):
    print(("ok " if held else "WRONG ") + name, flush=True)

unary = channel.unary_unary("/a.B/Unary")
reply, call = unary.with_call(b"hello", timeout=T, metadata=(("x-asked", "1"),))
trailers = {m.key: m.value for m in call.trailing_metadata()}
initial = {m.key: m.value for m in call.initial_metadata()}
check("unary", reply == b"hello" and call.code() == grpc.StatusCode.OK)
check("metadata", initial.get("x-initial") == "i" and trailers.get("x-trailer") == "t" and trailers.get("x-some-bin") == b"\x00\xff")
check("large", unary(b"x" * 3_000_000, timeout=T) == b"x" * 3_000_000)

def status(call):
    try:
        call()
        return None, None
    except grpc.RpcError as error:
        return error.code(), error.details()

code, details = status(lambda: channel.unary_unary("/a.B/Fail")(b"", timeout=T))
check("status", code == grpc.StatusCode.NOT_FOUND and details == "no such user: ä%")
code, _ = status(lambda: channel.unary_unary("/a.B/Nothing")(b"", timeout=T))
check("unimplemented", code == grpc.StatusCode.UNIMPLEMENTED)
code, _ = status(lambda: channel.unary_unary("/a.B/Slow")(b"", timeout=0.5))
check("deadline", code == grpc.StatusCode.DEADLINE_EXCEEDED)
future = channel.unary_unary("/a.B/Slow").future(b"", timeout=T)
threading.Timer(0.3, future.cancel).start()
try:
    future.result()
    check("cancel", False)
except grpc.FutureCancelledError:
    check("cancel", True)
got = list(channel.unary_stream("/a.B/Download")(b"0123456789", timeout=T))
check("server streaming", len(got) == 200 and all(g == b"0123456789" * 100 for g in got))
check("client streaming", channel.stream_unary("/a.B/Upload")(iter([b"x" * 1000] * 500), timeout=T) == b"500000")

asked = queue.Queue()
chat = channel.stream_stream("/a.B/Chat")(iter(asked.get, None), timeout=T)
held = True
for i in range(20):
    asked.put(b"%d" % i)
    held = held and next(chat) == b"re: %d" % i
asked.put(None)
check("both streaming, in turns", held and list(chat) == [])

half = channel.unary_stream("/a.B/Half")(b"", timeout=T)
first = next(half)
code, details = status(lambda: next(half))
check("an error after a message", first == b"one" and code == grpc.StatusCode.RESOURCE_EXHAUSTED and details == "enough")

results = []
def many():
    for i in range(50):
        results.append(unary(b"%d" % i, timeout=T) == b"%d" % i)
threads = [threading.Thread(target=many) for _ in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
check("many at once", len(results) == 400 and all(results))

other = grpc.insecure_channel(sys.argv[1], [("grpc.default_authority", "nobody:80")])
code, details = status(lambda: other.unary_unary("/a.B/Unary")(b"", timeout=T))
check("an explained refusal", code == grpc.StatusCode.UNIMPLEMENTED and "nobody" in details)
print("done", flush=True)
"#;

/// Names of the client's checks, in order.
const CHECKS: [&str; 14] = [
    "unary",
    "metadata",
    "large",
    "status",
    "unimplemented",
    "deadline",
    "cancel",
    "server streaming",
    "client streaming",
    "both streaming, in turns",
    "an error after a message",
    "many at once",
    "an explained refusal",
    "done",
];

#[tokio::test(flavor = "multi_thread")]
async fn grpcs_own_library_is_served_through_two_sidecars() {
    let ip = fresh_ip();
    let named = service("echo", &[(ip, "v1")])
        .replace("name: http, protocol: HTTP", "name: grpc, protocol: GRPC");
    let mesh = Mesh::start(&format!("{named}{}", mtls("STRICT"))).await;
    let (server, client, at) = (Directory::new(), Directory::new(), free());
    std::fs::write(server.path().join("server.py"), SERVER).expect("written");
    std::fs::write(client.path().join("client.py"), CLIENT).expect("written");
    let address = at.to_string();
    let _server = Program::start("python3", &["server.py", &address], server.path());
    until("the server listens", || async {
        TcpStream::connect(at).await.ok().map(drop)
    })
    .await;
    let _callee = mesh
        .proxy("echo", &format!("--inbound {ip}:{PORT}={at}"))
        .await;
    let caller = mesh.proxy("web", "").await;
    let target = caller.outbound.to_string();
    let _client = Program::start("python3", &["client.py", &target], client.path());
    let said = until("the client is done", || async {
        let said = std::fs::read_to_string(client.path().join("python3.log")).ok()?;
        (said.contains("done\n") || said.contains("Error")).then_some(said)
    })
    .await;
    let expected: Vec<String> = (CHECKS.iter())
        .map(|name| {
            if *name == "done" {
                "done".to_owned()
            } else {
                format!("ok {name}")
            }
        })
        .collect();
    assert_eq!(said.lines().collect::<Vec<_>>(), expected, "{said}");
    // The call that exceeded its deadline and the cancelled one ended at the server as well.
    until("the server saw both end", || async {
        let said = std::fs::read_to_string(server.path().join("python3.log")).ok()?;
        (said.matches("cancelled").count() == 2).then_some(())
    })
    .await;
}
