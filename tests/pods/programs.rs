//! Real programs through two sidecars, unaware of them: PostgreSQL, RabbitMQ, nginx, gRPC's own library, WebSocket.
//!
//! `postgres`, `rabbitmq-server` and `nginx` of Debian must be installed, and a `python3` with grpcio, pika and websockets must be on
//! PATH.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use leno_tests::Directory;
use leno_tests::mesh::{Mesh, mtls};
use leno_tests::pods::{Pod, PodSidecar, Pods};
use tokio::process::Child;
use tokio::time::{sleep, timeout};

use crate::interception::service;

/// A broker of its own in the directory. Its user `guest` isn't only for loopback: connections come from the sidecar.
const RABBITMQ: &str = "export HOME=$PWD RABBITMQ_MNESIA_BASE=$PWD RABBITMQ_LOG_BASE=$PWD RABBITMQ_NODENAME=r@localhost RABBITMQ_NODE_PORT=5672\n\
    export RABBITMQ_DIST_PORT=25672 RABBITMQ_ENABLED_PLUGINS_FILE=$PWD/plugins ERL_EPMD_PORT=4369\n\
    echo 'loopback_users = none' > rabbitmq.conf\n\
    export RABBITMQ_CONFIG_FILE=$PWD/rabbitmq.conf\n\
    exec /usr/lib/rabbitmq/bin/rabbitmq-server\n";

/// Longest time that a program may take to start.
const START: Duration = Duration::from_secs(60);

/// A server's pod with its program, a caller's, and a stranger's.
struct Stage {
    directory: Directory,
    _program: Option<Child>,
    _sidecars: Vec<PodSidecar>,
    _mesh: Mesh,
    pods: Pods,
}

/// A policy that lets only order-service reach `name`.
fn only_orders(name: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}}}\nspec:\n  \
         selector: {{matchLabels: {{app: {name}}}}}\n  action: ALLOW\n  rules:\n  \
         - from: [{{source: {{principals: [cluster.local/ns/default/sa/order-service]}}}}]\n"
    )
}

impl Stage {
    /// Starts the server's pod, a caller's and a stranger's.
    async fn open(name: &str, port: &str, number: u16) -> Stage {
        let accounts = [name, "order-service", "stranger"];
        Stage::of(&accounts, |pods| {
            let ips = [pods.pods[0].ip.into()];
            service(name, port, number, number, &ips) + &only_orders(name) + &mtls("STRICT")
        })
        .await
    }

    /// Starts a pod for each account; idle connections end after 2 s downstream and 1 s upstream.
    async fn of(accounts: &[&str], yaml: impl Fn(&Pods) -> String) -> Stage {
        let pods = Pods::new(u8::try_from(accounts.len()).expect("a few"));
        let mesh = pods.mesh(&yaml(&pods)).await;
        let mut sidecars = Vec::new();
        for (pod, account) in pods.pods.iter().zip(accounts) {
            let flags = "--idle-timeout 2s --upstream-idle-timeout 1s";
            sidecars.push(pod.inject(&mesh, account, flags).await);
        }
        Stage {
            directory: Directory::new(),
            _program: None,
            _sidecars: sidecars,
            _mesh: mesh,
            pods,
        }
    }

    fn server(&self) -> &Pod {
        &self.pods.pods[0]
    }

    /// Runs a shell script in the server's pod, and keeps the process.
    fn starts(&mut self, script: &str) {
        let path = self.write("start.sh", script);
        let log = std::fs::File::create(self.directory.path().join("log")).expect("a file");
        let mut command =
            self.server()
                .command(0, Path::new("/bin/sh"), &path.display().to_string());
        command
            .current_dir(self.directory.path())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log);
        self._program = Some(command.spawn().expect("a shell"));
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    }

    /// Output of a Python script in a caller's pod, or its error.
    async fn python(&self, pod: usize, script: &str) -> Result<String, String> {
        let path = self.write(&format!("client-{pod}.py"), script);
        let words = format!("{} {}", path.display(), self.server().ip);
        let python = which("python3");
        let mut command = self.pods.pods[pod].command(0, &python, &words);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let done = timeout(START, command.output())
            .await
            .map_err(|_| "it takes too long".to_owned())?;
        let done = done.expect("python3");
        match done.status.success() {
            true => Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned()),
            false => Err(String::from_utf8_lossy(&done.stderr).into_owned()),
        }
    }

    /// The same, repeated until the program serves.
    async fn once_it_serves(&self, script: &str) -> String {
        let deadline = tokio::time::Instant::now() + START;
        loop {
            match self.python(1, script).await {
                Ok(said) => return said,
                Err(error) => {
                    let log = std::fs::read_to_string(self.directory.path().join("log"));
                    assert!(
                        tokio::time::Instant::now() < deadline,
                        "{error}\n{}",
                        log.unwrap_or_default()
                    );
                }
            }
            sleep(Duration::from_millis(500)).await;
        }
    }
}

fn which(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{program} must be on PATH"))
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_is_reached_by_those_who_may() {
    let mut stage = Stage::open("database", "tcp-postgres", 5432).await;
    stage.starts(
        "set -e\nchmod 755 .\nmkdir data && chown postgres data\nbin=$(ls -d /usr/lib/postgresql/*/bin)\n\
         run() { setpriv --reuid postgres --regid postgres --init-groups \"$@\"; }\n\
         run $bin/initdb -D $PWD/data -A trust > /dev/null\n\
         echo host all all 127.0.0.6/32 trust >> data/pg_hba.conf\n\
         exec setpriv --reuid postgres --regid postgres --init-groups $bin/postgres -D $PWD/data -k $PWD/data -c listen_addresses='*' -p 5432\n",
    );
    let query = "import subprocess, sys\n\
                 print(subprocess.run(['psql', '-h', sys.argv[1], '-U', 'postgres', '-Atc', 'select 6 * 7, pg_sleep(4)'],\n    \
                 check=True, capture_output=True, text=True, timeout=20).stdout)\n";
    assert_eq!(stage.once_it_serves(query).await, "42|");
    let refused = stage.python(2, query).await;
    assert!(refused.is_err(), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_keeps_connections_that_say_nothing_and_loses_no_message() {
    let mut stage = Stage::open("broker", "tcp-amqp", 5672).await;
    stage.starts(RABBITMQ);
    // Idle for longer than the sidecars' idle timeouts, in the middle of a delivery.
    let orders = "import pika, sys, time\n\
        parameters = pika.ConnectionParameters(sys.argv[1], 5672, heartbeat=0, socket_timeout=5)\n\
        publisher, consumer = pika.BlockingConnection(parameters), pika.BlockingConnection(parameters)\n\
        out, inn = publisher.channel(), consumer.channel()\n\
        out.confirm_delivery()\n\
        out.queue_declare('orders', durable=True)\n\
        out.queue_purge('orders')\n\
        for i in range(100): out.basic_publish('', 'orders', b'order %d' % i)\n\
        time.sleep(6)\n\
        for i in range(100):\n    \
            method, _, body = inn.basic_get('orders')\n    \
            assert body == b'order %d' % i, body\n    \
            if i == 50: time.sleep(6)\n    \
            inn.basic_ack(method.delivery_tag)\n\
        time.sleep(6)\n\
        out.basic_publish('', 'orders', b'last')\n\
        print(inn.basic_get('orders', auto_ack=True)[2].decode())\n";
    assert_eq!(stage.once_it_serves(orders).await, "last");
    let refused = stage.python(2, orders).await;
    assert!(refused.is_err(), "{refused:?}");
}

/// A service of the example in a pod: its stdin, and the lines that it prints.
struct Talker {
    child: Child,
    said: tokio::io::Lines<tokio::io::BufReader<tokio::process::ChildStdout>>,
}

impl Talker {
    async fn start(pod: &Pod, role: &str, broker: &str) -> Talker {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/events/service.py");
        let words = format!("{} {role} {broker}", script.display());
        let mut command = pod.command(0, &which("python3"), &words);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3");
        let said = tokio::io::BufReader::new(child.stdout.take().expect("a pipe"));
        let mut talker = Talker {
            child,
            said: tokio::io::AsyncBufReadExt::lines(said),
        };
        assert_eq!(talker.line().await, "ready", "{role}");
        talker
    }

    async fn say(&mut self, words: &str) {
        use tokio::io::AsyncWriteExt;
        let input = self.child.stdin.as_mut().expect("a pipe");
        input.write_all(words.as_bytes()).await.expect("written");
    }

    async fn line(&mut self) -> String {
        let line = timeout(START, self.said.next_line()).await.expect("a line");
        line.expect("a line").unwrap_or_default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_of_events_runs_and_a_stranger_stays_outside() {
    let accounts = [
        "rabbitmq",
        "order-service",
        "inventory-service",
        "notification-service",
        "stranger",
    ];
    let yaml = |_: &Pods| include_str!("../../examples/events/mesh.yaml").to_owned();
    let mut stage = Stage::of(&accounts, yaml).await;
    stage.starts(RABBITMQ);
    let knock = "import pika, sys\n\
        pika.BlockingConnection(pika.ConnectionParameters(sys.argv[1], 5672, socket_timeout=5)).close()\n";
    stage.once_it_serves(knock).await;
    let broker = stage.server().ip.to_string();
    let pods = &stage.pods.pods;
    let mut inventory = Talker::start(&pods[2], "inventory-service", &broker).await;
    let mut notification = Talker::start(&pods[3], "notification-service", &broker).await;
    let mut orders = Talker::start(&pods[1], "order-service", &broker).await;
    let mut told = Vec::new();
    for (number, reserved) in [(1, "reserved"), (2, "shortage")] {
        orders.say("book 2\n").await;
        assert_eq!(orders.line().await, format!("order {number} created"));
        assert_eq!(
            inventory.line().await,
            format!("order {number}: {reserved}")
        );
        told.push(notification.line().await);
    }
    told.push(notification.line().await);
    told.sort();
    let expected = [
        "order 1: customer told of order.created",
        "order 2: customer told of inventory.shortage",
        "order 2: customer told of order.created",
    ];
    assert_eq!(told, expected);
    assert!(
        stage.python(4, knock).await.is_err(),
        "a stranger reaches the broker"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_is_served_on_a_port_without_a_name() {
    let mut stage = Stage::open("web", "", 8080).await;
    stage.write(
        "nginx.conf",
        "daemon off; error_log stderr; pid nginx.pid; events {}\n\
         http { access_log off; client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;\n\
         server { listen 8080; location / { return 200 \"$http_x_forwarded_client_cert\"; } } }\n",
    );
    stage.starts("exec nginx -p $PWD -c $PWD/nginx.conf\n");
    let ask = "import sys, urllib.request\n\
               print(urllib.request.urlopen('http://%s:8080/' % sys.argv[1], timeout=10).read().decode())\n";
    let said = stage.once_it_serves(ask).await;
    assert!(
        said.ends_with("URI=spiffe://cluster.local/ns/default/sa/order-service"),
        "{said}"
    );
    let refused = stage.python(2, ask).await.expect_err("refused");
    assert!(refused.contains("403"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcs_own_library_calls_and_streams() {
    let mut stage = Stage::open("ledger", "grpc", 50051).await;
    let server = stage.write(
        "server.py",
        "import grpc\nfrom concurrent import futures\n\
         identity = lambda x: x\n\
         class H(grpc.GenericRpcHandler):\n    \
             def service(self, details):\n        \
                 if details.method.endswith('Stream'):\n            \
                     return grpc.stream_stream_rpc_method_handler(lambda it, c: (x.upper() for x in it), identity, identity)\n        \
                 return grpc.unary_unary_rpc_method_handler(lambda x, c: x.upper(), identity, identity)\n\
         s = grpc.server(futures.ThreadPoolExecutor(8))\n\
         s.add_generic_rpc_handlers((H(),))\n\
         s.add_insecure_port('0.0.0.0:50051')\n\
         s.start()\ns.wait_for_termination()\n",
    );
    stage.starts(&format!(
        "exec {} {}\n",
        which("python3").display(),
        server.display()
    ));
    let call = "import grpc, sys\n\
                identity = lambda x: x\n\
                with grpc.insecure_channel('%s:50051' % sys.argv[1]) as c:\n    \
                    one = c.unary_unary('/a.B/One', identity, identity)(b'one', timeout=10)\n    \
                    many = list(c.stream_stream('/a.B/Stream', identity, identity)(iter([b'a', b'b', b'c']), timeout=10))\n    \
                    print(one, many)\n";
    assert_eq!(
        stage.once_it_serves(call).await,
        "b'ONE' [b'A', b'B', b'C']"
    );
    let refused = stage.python(2, call).await.expect_err("refused");
    assert!(refused.contains("PERMISSION_DENIED"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_talks_both_ways() {
    let mut stage = Stage::open("notification", "http", 8765).await;
    let server = stage.write(
        "server.py",
        "import asyncio, websockets\n\
         async def echo(ws):\n    \
             async for message in ws: await ws.send(message.upper())\n\
         async def main():\n    \
             async with websockets.serve(echo, '0.0.0.0', 8765, ping_interval=None): await asyncio.Future()\n\
         asyncio.run(main())\n",
    );
    stage.starts(&format!(
        "exec {} {}\n",
        which("python3").display(),
        server.display()
    ));
    let talk = "import asyncio, sys, websockets\n\
                async def main():\n    \
                    async with websockets.connect('ws://%s:8765/' % sys.argv[1], ping_interval=None) as ws:\n        \
                        await ws.send('one')\n        \
                        first = await ws.recv()\n        \
                        await asyncio.sleep(5)\n        \
                        await ws.send('two' * 100000)\n        \
                        print(first, len(await ws.recv()))\n\
                asyncio.run(main())\n";
    assert_eq!(stage.once_it_serves(talk).await, "ONE 300000");
    let refused = stage.python(2, talk).await.expect_err("refused");
    assert!(refused.contains("403"), "{refused}");
}
