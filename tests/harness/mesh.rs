//! The mesh in-process: a control plane on a directory of YAML, and proxies on addresses of their own.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, SystemTime};

use clap::Parser;
use leno_control_plane::app as control_plane;
use leno_control_plane::ca::Bearer;
use leno_control_plane::compile::Settings;
use leno_control_plane::istio::Limits;
use leno_control_plane::source::State;
use leno_proxy::app as proxy;
use leno_proxy::bootstrap::{Cli, Command};
use serde_json::Value;

use crate::ca::Ca;
use crate::client::get;
use crate::{Directory, fresh_ip, until};

/// The port that workloads listen on.
pub const PORT: u16 = 3001;

/// A control plane with its directory.
pub struct Mesh {
    directory: Directory,
    bootstrap: control_plane::Bootstrap,
    /// The control plane, while it runs.
    pub control_plane: Option<control_plane::Bound>,
    /// Its xDS address.
    pub xds: SocketAddr,
}

impl Mesh {
    /// Starts a mesh with this YAML.
    pub async fn start(yaml: &str) -> Mesh {
        Mesh::start_with(yaml, |_| {}).await
    }

    /// Starts a mesh with this YAML; `change` edits the control plane's bootstrap.
    ///
    /// # Panics
    /// When it can't start.
    pub async fn start_with(
        yaml: &str,
        change: impl FnOnce(&mut control_plane::Bootstrap),
    ) -> Mesh {
        let directory = Directory::new();
        let config = directory.path().join("yaml");
        std::fs::create_dir_all(&config).expect("a directory");
        let ip = fresh_ip();
        let mut bootstrap = control_plane::Bootstrap {
            config,
            state: directory.path().join("state"),
            xds: SocketAddr::from((ip, 15012)),
            monitoring: SocketAddr::from((ip, 15014)),
            settings: Settings {
                trust_domain: "cluster.local".to_owned(),
                root_namespace: "istio-system".to_owned(),
                outbound_traffic_policy: leno_control_plane::mesh::OutboundTrafficPolicy::default(),
            },
            max_ttl: Duration::from_secs(24 * 3600),
            service_accounts: None,
            limits: Limits::default(),
            max_xds_message: 4 * 1024 * 1024,
            dns_server: None,
        };
        change(&mut bootstrap);
        let mut mesh = Mesh {
            xds: bootstrap.xds,
            directory,
            bootstrap,
            control_plane: None,
        };
        mesh.write("mesh.yaml", yaml);
        mesh.start_control_plane().await;
        mesh
    }

    /// Writes a file of the configuration, by rename.
    ///
    /// # Panics
    /// When it can't.
    pub fn write(&self, file: &str, yaml: &str) {
        let path = self.bootstrap.config.join(file);
        let next = self.directory.path().join("next");
        std::fs::write(&next, yaml)
            .and_then(|()| std::fs::rename(next, path))
            .expect("written");
    }

    /// Starts or restarts the control plane, and waits until it has read everything.
    ///
    /// # Panics
    /// When it can't start.
    pub async fn start_control_plane(&mut self) {
        let bound = until("the control plane starts", || async {
            control_plane::run(self.bootstrap.clone()).await.ok()
        });
        let bound = bound.await;
        let mut state = bound.state.clone();
        state
            .wait_for(|state| state.complete)
            .await
            .expect("it reads");
        self.control_plane = Some(bound);
    }

    /// Ends the control plane at once.
    pub async fn stop_control_plane(&mut self) {
        if let Some(bound) = self.control_plane.take() {
            bound.shutdown().await;
        }
    }

    /// Waits until a VirtualService is in force.
    ///
    /// # Panics
    /// When the control plane doesn't run.
    pub async fn wait_routed(&self) {
        let mut state = self.control_plane.as_ref().expect("it runs").state.clone();
        let routed = |state: &State| state.mesh.services.values().any(|s| s.routing.is_some());
        state.wait_for(routed).await.expect("it reads");
    }

    /// The control plane's `/debug/status`, as JSON.
    pub async fn status(&self) -> String {
        get(self.bootstrap.monitoring, "leno", "/debug/status")
            .await
            .text()
    }

    /// The live map, `/debug/mesh`, as JSON.
    ///
    /// # Panics
    /// When it isn't JSON.
    pub async fn map(&self) -> Value {
        let page = get(self.bootstrap.monitoring, "leno", "/debug/mesh").await;
        serde_json::from_slice(&page.body).expect("JSON")
    }

    /// Address of the metrics and debug pages.
    pub fn monitoring(&self) -> SocketAddr {
        self.bootstrap.monitoring
    }

    /// The directory of its configuration.
    pub fn config(&self) -> &std::path::Path {
        &self.bootstrap.config
    }

    /// The control plane's state directory.
    pub fn state(&self) -> &std::path::Path {
        &self.bootstrap.state
    }

    /// The CA of its control plane.
    pub fn ca(&self) -> Ca {
        Ca::stolen(&self.bootstrap.state)
    }

    /// Problems of the configuration.
    pub fn problems(&self) -> Vec<String> {
        let bound = self.control_plane.as_ref().expect("it runs");
        bound
            .state
            .borrow()
            .problems
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    /// Path of the CA's root certificate.
    pub fn root(&self) -> std::path::PathBuf {
        self.bootstrap.state.join("root-cert.pem")
    }

    /// A join token of an account in namespace `default`.
    pub fn token(&self, account: &str) -> String {
        self.token_in("default", account)
    }

    /// A join token.
    ///
    /// # Panics
    /// When none can be made.
    pub fn token_in(&self, namespace: &str, account: &str) -> String {
        self.token_with(namespace, account, &[])
    }

    /// A join token of a workload with labels.
    ///
    /// # Panics
    /// When none can be made.
    pub fn token_with(&self, namespace: &str, account: &str, labels: &[(&str, &str)]) -> String {
        let ca = &self.control_plane.as_ref().expect("it runs").ca;
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let bearer = Bearer {
            namespace: namespace.to_owned(),
            account: account.to_owned(),
            labels: labels.iter().map(own).collect(),
        };
        let life = Duration::from_secs(600);
        ca.token(&bearer, life, 100, SystemTime::now())
            .expect("a token")
    }

    /// A file that holds a join token of an account in namespace `default`.
    pub fn token_file(&self, account: &str) -> std::path::PathBuf {
        self.token_file_in("default", account)
    }

    /// A file that holds a join token.
    ///
    /// # Panics
    /// When it can't be written.
    pub fn token_file_in(&self, namespace: &str, account: &str) -> std::path::PathBuf {
        let name = format!("token-{:08x}", fastrand::u32(..));
        let path = self.directory.path().join(name);
        std::fs::write(&path, self.token_in(namespace, account)).expect("written");
        path
    }

    /// Starts a proxy of `account` with more flags, and waits until it is ready.
    pub async fn proxy(&self, account: &str, flags: &str) -> Proxy {
        let proxy = self.start_proxy(account, flags);
        proxy.ready().await;
        proxy
    }

    /// Starts a proxy of `account` with more flags.
    ///
    /// # Panics
    /// When it can't start.
    pub fn start_proxy(&self, account: &str, flags: &str) -> Proxy {
        self.start_proxy_in("default", account, flags)
    }

    /// Starts a proxy of an `account` of `namespace` with more flags.
    ///
    /// # Panics
    /// When it can't start.
    pub fn start_proxy_in(&self, namespace: &str, account: &str, flags: &str) -> Proxy {
        let token = self.token_file_in(namespace, account);
        Proxy::start(&format!(
            "--xds-address {} --namespace {namespace} --service-account {account} --token-file {} {flags}",
            self.xds,
            token.display()
        ))
    }

    /// Starts the proxy of a workload at `ip` in front of `app`.
    pub async fn workload(&self, account: &str, ip: Ipv4Addr, app: SocketAddr) -> Proxy {
        self.proxy(account, &format!("--inbound {ip}:{PORT}={app}"))
            .await
    }
}

/// A proxy.
pub struct Proxy {
    bound: Option<proxy::Bound>,
    /// Its outbound address, for the app's requests.
    pub outbound: SocketAddr,
    /// Its admin address.
    pub admin: SocketAddr,
    /// Its inbound addresses.
    pub inbound: Vec<SocketAddr>,
    /// Addresses that Prometheus scrapes: all metrics, and the sidecar's own.
    pub stats: [SocketAddr; 2],
}

impl Proxy {
    /// Starts a proxy with these flags.
    ///
    /// # Panics
    /// When it can't start.
    pub fn start(flags: &str) -> Proxy {
        Proxy::try_start(flags).expect("it starts")
    }

    /// Starts a proxy with these flags, if its addresses are free.
    ///
    /// # Panics
    /// When the flags are wrong.
    pub fn try_start(flags: &str) -> Option<Proxy> {
        let fixed = "leno-proxy run --outbound-address 127.0.0.1:0 --admin-address 127.0.0.1:0 \
                     --metrics-address 127.0.0.1:0 --prometheus-address 127.0.0.1:0";
        let words = fixed.split_whitespace().chain(flags.split_whitespace());
        let Command::Run(args) = Cli::try_parse_from(words).expect("flags").command else {
            panic!("not a proxy: {flags}");
        };
        let bound = proxy::run(args.into_bootstrap().expect("valid")).ok()?;
        Some(Proxy {
            outbound: bound.outbound,
            admin: bound.admin,
            stats: bound.stats,
            inbound: bound.inbound.clone(),
            bound: Some(bound),
        })
    }

    /// Waits until it is ready.
    pub async fn ready(&self) {
        until("the proxy is ready", || async {
            (get(self.admin, "admin", "/ready").await.status == 200).then_some(())
        })
        .await;
    }

    /// The `/config` page.
    ///
    /// # Panics
    /// When it isn't JSON.
    pub async fn config(&self) -> Value {
        serde_json::from_slice(&get(self.admin, "admin", "/config").await.body).expect("JSON")
    }

    /// The sum of the lines of a metric that contain every one of `labels`.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = get(self.admin, "admin", "/metrics").await.text();
        let lines = text.lines().filter(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
        });
        let matching = lines.filter(|line| labels.iter().all(|label| line.contains(label)));
        matching
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Drains and stops it.
    pub async fn stop(mut self) {
        if let Some(bound) = self.bound.take() {
            bound.shutdown().await;
        }
    }
}

/// A ServiceEntry of a service in the mesh, with workloads `(ip, version)`.
pub fn service(name: &str, workloads: &[(Ipv4Addr, &str)]) -> String {
    let endpoint = |(ip, version): &(Ipv4Addr, &str)| {
        format!(
            "  - address: {ip}\n    labels: {{app: {name}, version: {version}}}\n    serviceAccount: {name}\n"
        )
    };
    let endpoints: String = workloads.iter().map(endpoint).collect();
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}}}\nspec:\n  \
         hosts: [{name}.default.svc.cluster.local]\n  location: MESH_INTERNAL\n  resolution: STATIC\n  \
         ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {PORT}}}]\n  endpoints:\n{endpoints}"
    )
}

/// A PeerAuthentication for the whole namespace.
pub fn mtls(mode: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: default}}\nspec: {{mtls: {{mode: {mode}}}}}\n"
    )
}

/// A mesh with one service `users`, its proxy in front of `app`, and a caller's proxy.
pub async fn pair(app: SocketAddr, more_yaml: &str, flags: &str) -> (Mesh, Proxy, Proxy, Ipv4Addr) {
    let ip = fresh_ip();
    let mesh = Mesh::start(&format!("{}{more_yaml}", service("users", &[(ip, "v1")]))).await;
    let inbound = format!("--inbound {ip}:{PORT}={app} {flags}");
    let callee = mesh.proxy("users", &inbound).await;
    let caller = mesh.proxy("web", flags).await;
    (mesh, caller, callee, ip)
}
