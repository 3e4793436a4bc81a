//! The client against a scripted server, over bytes in memory and a paused clock.

use std::io;
use std::pin::Pin;
use std::sync::Mutex;

use leno_proto::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use leno_proto::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use leno_proto::tonic::transport::Server;
use leno_proto::tonic::{self, Request, Response};
use leno_proto::type_url::{CLUSTER, ENDPOINTS};
use tokio::io::DuplexStream;
use tokio::time::{self, sleep};
use tokio_stream::Stream;

use super::*;
use crate::directory::Limits;
use crate::drain::{self, Signal};
use crate::error::Kind;
use crate::observe::labels::Party;
use crate::resources::tests::{cluster, endpoints, listener, missing, response};
use crate::snapshot::OutboundKind;

/// Time after which an unused name is unsubscribed.
const IDLE: Duration = Duration::from_secs(100);

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The server's end of a stream.
struct ServerStream {
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

impl ServerStream {
    async fn request(&mut self) -> DeltaDiscoveryRequest {
        let message = self.requests.message().await;
        message.expect("no error").expect("no end")
    }

    /// The next requests, as type and names, until those that are expected have come; in any order.
    async fn subscribed(&mut self, expected: &[(&str, &str)]) {
        let mut seen = BTreeSet::new();
        while seen.len() < expected.len() {
            let request = self.request().await;
            for name in request.resource_names_subscribe {
                seen.insert((request.type_url.clone(), name));
            }
        }
        let expected = expected.iter();
        let expected = expected.map(|(t, name)| ((*t).to_owned(), (*name).to_owned()));
        assert_eq!(seen, expected.collect());
    }

    /// Sends a response; returns its ACK or NACK.
    async fn send(&mut self, mut response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        response.nonce = "n".to_owned();
        self.responses.send(Ok(response)).await.expect("read");
        loop {
            let request = self.request().await;
            if request.response_nonce == "n" {
                return request;
            }
        }
    }
}

struct Service(mpsc::UnboundedSender<ServerStream>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream = Out<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Out<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("delta only"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (responses, receiver) = mpsc::channel(16);
        let _ = self.0.send(ServerStream {
            requests: request.into_inner(),
            responses,
        });
        let out: Out<_> = Box::pin(ReceiverStream::new(receiver));
        Ok(Response::new(out))
    }
}

/// A client that runs, and the server that it connects to.
struct Fixture {
    directory: Arc<Directory>,
    metrics: Arc<Metrics>,
    streams: mpsc::UnboundedReceiver<ServerStream>,
    /// Times at which the client connected.
    dialled: Arc<Mutex<Vec<Instant>>>,
    _signal: Signal,
}

impl Fixture {
    /// Starts a client whose first `refused` connections fail.
    fn start(refused: usize) -> Fixture {
        let (incoming, connections) = mpsc::channel::<io::Result<DuplexStream>>(16);
        let dialled = Arc::new(Mutex::new(Vec::new()));
        let times = Arc::clone(&dialled);
        let dialer = Dialer::new(move || {
            let mut times = times.lock().expect("no panic");
            times.push(Instant::now());
            let (is_refused, incoming) = (times.len() <= refused, incoming.clone());
            async move {
                if is_refused {
                    return Err(io::Error::from(io::ErrorKind::ConnectionRefused));
                }
                let (own, theirs) = tokio::io::duplex(1 << 20);
                let _ = incoming.send(Ok(theirs)).await;
                Ok(own)
            }
        });
        let (opened, streams) = mpsc::unbounded_channel();
        let service = AggregatedDiscoveryServiceServer::new(Service(opened));
        let server = Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(ReceiverStream::new(connections)));

        let metrics = Metrics::new(1000).expect("metrics");
        let credentials = Credentials::new("cluster.local");
        let (directory, asked) = Directory::new(Limits {
            names: 1000,
            waiting: 100,
            wait: Duration::from_secs(5),
        });
        let builder = Builder::new(
            Arc::clone(&credentials),
            Arc::clone(&metrics),
            Party::default(),
            HashMap::new(),
        );
        let options = Options {
            dialer,
            target: "memory".to_owned(),
            node: Node::default(),
            max_message: 1 << 20,
            idle_names: IDLE,
            state: None,
        };
        let client = Client::new(
            options,
            builder,
            Arc::clone(&directory),
            credentials,
            Arc::clone(&metrics),
            Arc::default(),
        );
        let (signal, watch) = drain::channel();
        tokio::spawn(client.run(asked, watch));
        Fixture {
            directory,
            metrics,
            streams,
            dialled,
            _signal: signal,
        }
    }

    /// Starts a client; returns it with its stream, once that has asked for what every proxy needs.
    async fn connected() -> (Fixture, ServerStream) {
        let mut fixture = Fixture::start(0);
        let mut stream = fixture.stream().await;
        let needed = [(LISTENER, INBOUND), (SECRET, secret::ROOTS)];
        stream.subscribed(&needed).await;
        (fixture, stream)
    }

    async fn stream(&mut self) -> ServerStream {
        self.streams.recv().await.expect("a stream")
    }

    /// Asks for `authority`, and serves it all that it leads to, by cluster `c`.
    async fn serve(&mut self, stream: &mut ServerStream, authority: &str) {
        let (directory, name) = (Arc::clone(&self.directory), authority.to_owned());
        let asked = tokio::spawn(async move { directory.resolve(&name).await.map(drop) });
        stream.subscribed(&[(LISTENER, authority)]).await;
        let resources = [
            (LISTENER, authority, listener(authority, "c")),
            (CLUSTER, "c", cluster("c", 1)),
            (ENDPOINTS, "c", endpoints("c", &[1])),
        ];
        for (type_url, name, any) in resources {
            let answer = stream
                .send(response(type_url, vec![(name, "1", any)]))
                .await;
            assert_eq!(answer.error_detail, None);
        }
        assert!(asked.await.expect("no panic").is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_begins_with_what_every_proxy_needs() {
    let (fixture, _stream) = Fixture::connected().await;
    assert!(fixture.directory.link().up);
    assert_eq!(fixture.metrics.connected.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_until_all_that_its_authority_leads_to_has_come() {
    let (mut fixture, mut stream) = Fixture::connected().await;
    fixture.serve(&mut stream, "a:80").await;
}

#[tokio::test(start_paused = true)]
async fn a_warming_plan_is_published_after_five_seconds_at_the_latest() {
    let mut fixture = Fixture::start(0);
    let mut stream = fixture.stream().await;
    let directory = Arc::clone(&fixture.directory);
    let began = Instant::now();
    let asked = tokio::spawn(async move {
        let _ = directory.resolve("a:80").await;
        Instant::now()
    });
    let answer = response(LISTENER, vec![("a:80", "1", listener("a:80", "c"))]);
    stream
        .subscribed(&[
            (LISTENER, INBOUND),
            (SECRET, secret::ROOTS),
            (LISTENER, "a:80"),
        ])
        .await;
    stream.send(answer).await;
    assert!(fixture.directory.find("a:80").is_none());
    let published = asked.await.expect("no panic");
    assert_eq!((published - began).as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn an_authority_that_does_not_exist_is_told_at_once() {
    let mut fixture = Fixture::start(0);
    let mut stream = fixture.stream().await;
    let directory = Arc::clone(&fixture.directory);
    let asked = tokio::spawn(async move { directory.resolve("no:80").await.map(drop) });
    stream
        .subscribed(&[
            (LISTENER, INBOUND),
            (SECRET, secret::ROOTS),
            (LISTENER, "no:80"),
        ])
        .await;
    stream
        .send(missing(LISTENER, "no:80", Some("no service no")))
        .await;
    let error = asked.await.expect("no panic").expect_err("none");
    assert_eq!(error.kind, Kind::UnknownAuthority);
    assert!(error.detail.contains("no service no"), "{}", error.detail);
}

#[tokio::test(start_paused = true)]
async fn a_refused_resource_is_a_nack_and_what_ran_runs_on() {
    let (mut fixture, mut stream) = Fixture::connected().await;
    fixture.serve(&mut stream, "a:80").await;
    let running = |fixture: &Fixture| {
        let plan = fixture.directory.find("a:80").expect("known").expect("ok");
        match &plan.kind {
            OutboundKind::Tcp(target) => target.cluster.clone().expect("a cluster"),
            other => panic!("{other:?}"),
        }
    };
    let before = running(&fixture);
    let bad = response(CLUSTER, vec![("c", "2", cluster("c", -1))]);
    let nack = stream.send(bad).await.error_detail.expect("a NACK");
    assert!(nack.message.contains("connect_timeout"), "{}", nack.message);
    assert_eq!(fixture.metrics.refused_resources.get(), 1);
    assert!(Arc::ptr_eq(&before, &running(&fixture)));
}

#[tokio::test(start_paused = true)]
async fn a_new_stream_names_the_versions_held_and_what_was_asked_for_meanwhile() {
    let (mut fixture, mut stream) = Fixture::connected().await;
    fixture.serve(&mut stream, "a:80").await;
    drop(stream);
    let directory = Arc::clone(&fixture.directory);
    tokio::spawn(async move { directory.resolve("b:80").await.map(drop) });
    let mut stream = fixture.stream().await;
    let mut held = BTreeSet::new();
    let mut names = BTreeSet::new();
    while held.len() < 3 || !names.contains("b:80") {
        let request = stream.request().await;
        names.extend(request.resource_names_subscribe);
        for (name, version) in request.initial_resource_versions {
            held.insert((request.type_url.clone(), name, version));
        }
    }
    let expected = [(LISTENER, "a:80"), (CLUSTER, "c"), (ENDPOINTS, "c")];
    let expected = expected.map(|(t, name)| (t.to_owned(), name.to_owned(), "1".to_owned()));
    assert_eq!(held, BTreeSet::from(expected));
}

#[tokio::test(start_paused = true)]
async fn connections_that_fail_are_tried_again_with_growing_pauses_of_ten_seconds_at_most() {
    const REFUSED: usize = 40;
    let began = Instant::now();
    let mut fixture = Fixture::start(REFUSED);
    sleep(Duration::from_millis(1)).await;
    let link = fixture.directory.link();
    assert!(!link.up && link.words.contains("refused"), "{}", link.words);
    let _stream = fixture.stream().await;
    let dialled = fixture.dialled.lock().expect("no panic").clone();
    assert_eq!((dialled.len(), dialled[0]), (REFUSED + 1, began));
    let mut longest = MIN_BACKOFF;
    for (i, pair) in dialled.windows(2).enumerate() {
        let pause = pair[1] - pair[0];
        // The clock has steps of a millisecond.
        let at_most = longest + Duration::from_millis(2);
        assert!(pause <= at_most, "pause {i}: {pause:?} of {longest:?}");
        longest = (longest * 2).min(MAX_BACKOFF);
    }
    let waited = dialled[REFUSED] - began;
    assert!(waited > Duration::from_secs(60), "{waited:?}");
    assert!(fixture.directory.link().up);
}

#[tokio::test(start_paused = true)]
async fn names_that_nobody_uses_are_given_back_with_what_they_led_to() {
    let (mut fixture, mut stream) = Fixture::connected().await;
    fixture.serve(&mut stream, "a:80").await;
    let served = Instant::now();
    let mut gone = BTreeSet::new();
    while gone.len() < 3 {
        let request = stream.request().await;
        for name in request.resource_names_unsubscribe {
            gone.insert((request.type_url.clone(), name));
        }
    }
    let expected = [(LISTENER, "a:80"), (CLUSTER, "c"), (ENDPOINTS, "c")];
    let expected = expected.map(|(t, name)| (t.to_owned(), name.to_owned()));
    assert_eq!(gone, BTreeSet::from(expected));
    assert!(fixture.directory.find("a:80").is_none());
    let after = served.elapsed();
    assert!(after > IDLE && after < IDLE * 3, "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_name_in_use_is_kept() {
    let (mut fixture, mut stream) = Fixture::connected().await;
    fixture.serve(&mut stream, "a:80").await;
    for _ in 0..10 {
        sleep(IDLE / 2).await;
        assert!(fixture.directory.find("a:80").is_some());
    }
    let more = time::timeout(Duration::from_millis(1), stream.request()).await;
    assert!(more.is_err(), "{more:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ends_the_stream_is_why_the_control_plane_is_unreachable() {
    let (fixture, stream) = Fixture::connected().await;
    let status = Status::permission_denied("no such node");
    stream.responses.send(Err(status)).await.expect("read");
    while fixture.directory.link().up {
        sleep(Duration::from_millis(1)).await;
    }
    let words = fixture.directory.link().words.clone();
    assert!(words.contains("PermissionDenied: no such node"), "{words}");
    assert_eq!(fixture.metrics.connected.get(), 0);
}
