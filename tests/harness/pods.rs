//! Pods that are only network namespaces, on one bridge in a namespace of its own: the machine's own network stays as
//! it is. Needs root, and `ip` of iproute2.

use std::fs::File;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command as StdCommand, Output, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::process::{Child, Command};
use tokio::runtime::{Builder, Runtime};

use crate::client::get;
use crate::mesh::Mesh;
use crate::process::program;
use crate::until;

/// Uid of the sidecars.
pub const SIDECAR: u32 = 1337;

/// Pods, removed when this is dropped.
pub struct Pods {
    prefix: String,
    /// Namespace of the bridge: the rest of the world.
    pub world: Pod,
    /// The pods.
    pub pods: Vec<Pod>,
}

/// A network namespace, with a runtime whose threads are in it.
pub struct Pod {
    name: String,
    /// Its IPv4 address.
    pub ip: Ipv4Addr,
    /// Its IPv6 address.
    pub ip6: Ipv6Addr,
    runtime: Option<Runtime>,
}

impl Pods {
    /// Creates `count` pods.
    ///
    /// # Panics
    /// When they can't be made; root is needed.
    pub fn new(count: u8) -> Pods {
        let prefix = format!("leno{:04x}", fastrand::u16(..));
        let world = format!("{prefix}-world");
        // Packets to an unused address must stay unanswered: the machine may forward, and new namespaces inherit that.
        let mut script = format!(
            "ip netns add {world}; ip -n {world} link set lo up\n\
             ip netns exec {world} sh -c \"echo 0 > /proc/sys/net/ipv4/ip_forward\"\n\
             ip -n {world} link add br0 type bridge forward_delay 0 mcast_snooping 0\n\
             ip -n {world} addr add 10.99.0.1/24 dev br0; ip -n {world} addr add fd99::1/64 dev br0 nodad\n\
             ip -n {world} link set br0 up\n"
        );
        for i in 1..=count {
            let (name, host) = (format!("{prefix}-p{i}"), i + 10);
            script.push_str(&format!(
                "ip netns add {name}; ip -n {name} link set lo up\n\
                 ip link add v{i} netns {world} type veth peer name eth0 netns {name}\n\
                 ip -n {world} link set v{i} master br0 up\n\
                 ip -n {name} addr add 10.99.0.{host}/24 dev eth0\n\
                 ip -n {name} addr add fd99::{host:x}/64 dev eth0 nodad\n\
                 ip -n {name} link set eth0 up\n\
                 ip -n {name} route add default via 10.99.0.1; ip -n {name} -6 route add default via fd99::1\n"
            ));
        }
        sh(&script);
        let pod = |name: String, host: u8| Pod::enter(name, host);
        Pods {
            world: pod(world, 1),
            pods: (1..=count)
                .map(|i| pod(format!("{prefix}-p{i}"), i + 10))
                .collect(),
            prefix,
        }
    }

    /// Starts a control plane in the rest of the world, which all pods reach.
    pub async fn mesh(&self, yaml: &str) -> Mesh {
        self.mesh_with(yaml, |_| {}).await
    }

    /// The same; `change` edits the bootstrap.
    pub async fn mesh_with(
        &self,
        yaml: &str,
        change: impl FnOnce(&mut leno_control_plane::app::Bootstrap) + Send + 'static,
    ) -> Mesh {
        let yaml = yaml.to_owned();
        let ip = self.world.ip;
        let start = async move {
            Mesh::start_with(&yaml, |bootstrap| {
                bootstrap.xds = (ip, 15012).into();
                bootstrap.monitoring = (ip, 15014).into();
                change(bootstrap);
            })
            .await
        };
        self.world.run(start).await
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        for pod in self.pods.iter_mut().chain([&mut self.world]) {
            if let Some(runtime) = pod.runtime.take() {
                runtime.shutdown_background();
            }
        }
        // Processes left in the namespaces were started by a test, and may have left their parent.
        let script = format!(
            "for name in $(ip netns list | cut -d\" \" -f1 | grep \"^{}-\"); do\n\
             for pid in $(ip netns pids $name); do [ $pid = {} ] || kill -KILL $pid; done\n\
             ip netns del $name; done",
            self.prefix,
            std::process::id()
        );
        let _ = StdCommand::new("sh").args(["-c", &script]).status();
    }
}

fn sh(script: &str) -> String {
    let done = StdCommand::new("sh")
        .args(["-ec", script])
        .output()
        .expect("sh");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "pods need root and iproute2: {said}");
    String::from_utf8_lossy(&done.stdout).into_owned()
}

impl Pod {
    fn enter(name: String, host: u8) -> Pod {
        let path = format!("/run/netns/{name}");
        // A thread starts in the namespace of the thread that spawns it.
        let thread = std::thread::spawn(move || {
            let namespace = File::open(&path).expect("a namespace");
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), kind).expect("root");
            let mut builder = Builder::new_multi_thread();
            let runtime = builder.worker_threads(1).enable_all().build();
            runtime.expect("a runtime")
        });
        Pod {
            ip: Ipv4Addr::new(10, 99, 0, host),
            ip6: Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, host.into()),
            runtime: Some(thread.join().expect("a namespace")),
            name,
        }
    }

    /// Path of its namespace.
    pub fn namespace(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// Runs a shell script in the pod as root, to inject faults; returns its output.
    pub fn script(&self, script: &str) -> String {
        sh(&format!("ip netns exec {} sh -ec '{script}'", self.name))
    }

    /// The two ends of each TCP connection in the pod that is in `state`, the pod's own end first.
    pub fn connections(&self, state: &str) -> Vec<[SocketAddr; 2]> {
        let listed = self.script(&format!("ss -Htn state {state}"));
        let end = |word: &str| {
            let end: SocketAddr = word.parse().ok()?;
            Some(SocketAddr::new(end.ip().to_canonical(), end.port()))
        };
        let ends = |line: &str| {
            let mut words = line.split_whitespace().skip(2);
            Some([end(words.next()?)?, end(words.next()?)?])
        };
        listed.lines().filter_map(ends).collect()
    }

    /// Runs `task` in the pod, and returns its output.
    ///
    /// # Panics
    /// When `task` does.
    pub async fn run<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let runtime = self.runtime.as_ref().expect("it lives");
        runtime.spawn(task).await.expect("no panic")
    }

    /// A command in the pod, as `uid`.
    pub fn command(&self, uid: u32, program: &Path, words: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]);
        if uid != 0 {
            let uid = uid.to_string();
            command.args([
                "setpriv",
                "--reuid",
                &uid,
                "--regid",
                &uid,
                "--clear-groups",
            ]);
            command.args(["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]);
        }
        command.arg(program).args(words.split_whitespace());
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Runs `leno-proxy` with these arguments, as root, to its end.
    ///
    /// # Panics
    /// When it can't be started.
    pub async fn proxy(&self, words: &str) -> Output {
        let program = &program().await;
        self.command(0, program, words)
            .output()
            .await
            .expect("it starts")
    }

    /// Intercepts the pod's connections, as `flags` say.
    ///
    /// # Panics
    /// When that fails.
    pub async fn init(&self, flags: &str) {
        let done = self.proxy(&format!("init {flags}")).await;
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{said}");
    }

    /// Intercepts the pod's connections, and starts the sidecar of `account`.
    pub async fn inject(&self, mesh: &Mesh, account: &str, flags: &str) -> PodSidecar {
        self.init("").await;
        self.sidecar(mesh, account, flags).await
    }

    /// Starts the sidecar of `account`, and waits until it is ready.
    ///
    /// # Panics
    /// When it can't be started.
    pub async fn sidecar(&self, mesh: &Mesh, account: &str, flags: &str) -> PodSidecar {
        let token = mesh.token_file(account);
        let words = format!(
            "run --interception-mode REDIRECT --xds-address {} --service-account {account} --ip {} --token-file {} {flags}",
            mesh.xds,
            self.ip,
            token.display()
        );
        let mut command = self.command(SIDECAR, &program().await, &words);
        let child = command.env("LENO_LOG", "warn").spawn().expect("it starts");
        let injected = PodSidecar { child };
        self.run(async {
            until("the sidecar is ready", || async {
                let admin = (IpAddr::from([127, 0, 0, 1]), 15000).into();
                let _ = tokio::net::TcpStream::connect(admin).await.ok()?;
                (get(admin, "admin", "/ready").await.status == 200).then_some(())
            })
            .await;
        })
        .await;
        injected
    }

    /// The sum of the lines of a metric of its sidecar that contain every one of `labels`.
    pub async fn metric(&self, name: &'static str, labels: &'static [&'static str]) -> f64 {
        self.run(async move {
            let admin = (IpAddr::from([127, 0, 0, 1]), 15000).into();
            let text = get(admin, "admin", "/metrics").await.text();
            let lines = text.lines().filter(|line| {
                line.starts_with(name) && labels.iter().all(|label| line.contains(label))
            });
            lines
                .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
                .sum()
        })
        .await
    }
}

/// A sidecar in a pod, killed when it is dropped.
pub struct PodSidecar {
    child: Child,
}

impl PodSidecar {
    /// Sends it SIGTERM.
    ///
    /// # Panics
    /// When it doesn't run.
    pub async fn terminate(&self) {
        let pid = self.child.id().expect("it runs");
        sh(&format!("kill -TERM {pid}"));
    }

    /// Waits until it has ended; true when its exit code is 0.
    ///
    /// # Panics
    /// When it doesn't.
    pub async fn ended(&mut self) -> bool {
        let ended = tokio::time::timeout(3 * crate::TIMEOUT, self.child.wait()).await;
        ended.expect("it ends").expect("a process").success()
    }

    /// Its resident memory, in bytes.
    ///
    /// # Panics
    /// When it doesn't run.
    pub fn memory(&self) -> usize {
        crate::process::memory(self.child.id().expect("it runs"))
    }
}
