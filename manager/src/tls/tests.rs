use std::{io, time::Duration};

use chrono::Utc;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_stream::StreamExt;
use tonic::transport::server::Connected;

use super::{
    client::Pin,
    identity::{IdentityError, Subject},
    testing::Authority,
    *,
};

/// For what happens by itself; only broken code takes so long.
const LONG: Duration = Duration::from_secs(20);

struct Server {
    address: String,
    incoming: tokio_stream::wrappers::ReceiverStream<io::Result<Conn>>,
}

impl Server {
    async fn start(security: &Security, limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        Self { address, incoming: security.incoming(listener, limits) }
    }

    async fn next(&mut self) -> Conn {
        tokio::time::timeout(LONG, self.incoming.next()).await.unwrap().unwrap().unwrap()
    }

    /// Nothing that was refused is handed on, also not later.
    fn is_silent(&mut self) -> bool {
        futures_util::FutureExt::now_or_never(self.incoming.next()).is_none()
    }
}

/// What a client finds who is to be refused: its own error, or the other side's end of the connection.
async fn outcome(security: &Security, server: &Server) -> io::Error {
    outcome_at(security, server.address.clone()).await
}

async fn outcome_at(security: &Security, address: String) -> io::Error {
    let mut conn = match security.dial(&address, &Pin::default()).await {
        Ok(conn) => conn,
        Err(error) => return error,
    };
    match tokio::time::timeout(LONG, conn.read(&mut [0; 16])).await.unwrap() {
        Ok(0) => io::ErrorKind::UnexpectedEof.into(),
        Ok(_) => panic!("it was served"),
        Err(error) => error,
    }
}

fn kind(error: &io::Error) -> &'static str {
    refusals::cause(error).unwrap_or_else(|| panic!("{error:?} says nothing of TLS")).kind
}

#[tokio::test]
async fn both_ends_know_each_other_by_name() {
    let lab = Authority::of("lab");
    let mut server = Server::start(&lab.node("n1"), Limits::default()).await;
    let pin = Pin::default();
    let mut client = lab.node("n2").dial(&server.address, &pin).await.unwrap();
    assert_eq!(pin.node().unwrap().as_str(), "n1");
    let mut conn = server.next().await;
    assert_eq!(conn.connect_info().node.unwrap().as_str(), "n2");
    client.write_all(b"hello").await.unwrap();
    client.flush().await.unwrap();
    let mut heard = [0; 5];
    conn.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"hello");
}

#[tokio::test]
async fn a_channel_stays_with_the_node_that_it_has_met() {
    let lab = Authority::of("lab");
    let (first, second) = (
        Server::start(&lab.node("n1"), Limits::default()).await,
        Server::start(&lab.node("n3"), Limits::default()).await,
    );
    let (client, pin) = (lab.node("n2"), Pin::default());
    client.dial(&first.address, &pin).await.unwrap();
    client.dial(&first.address, &pin).await.unwrap();
    let refused = client.dial(&second.address, &pin).await.unwrap_err();
    assert_eq!(kind(&refused), "node");
    assert!(refused.to_string().contains("is of node n3, n1 was expected"), "{refused}");
    let refused = client.connect(&"n1".parse().unwrap(), &second.address).await.unwrap_err();
    assert!(crate::chain(&refused).contains("n1 was expected"), "{}", crate::chain(&refused));
}

#[tokio::test]
async fn each_end_refuses_what_is_not_of_its_cluster() {
    let (lab, stranger) = (Authority::of("lab"), Authority::of("lab"));
    let mut server = Server::start(&lab.node("n1"), Limits::default()).await;
    // The client sees it first: its own check of the server comes before.
    assert_eq!(kind(&outcome(&stranger.node("n2"), &server).await), "stranger");
    assert_eq!(kind(&outcome(&Security::mutual(lab.expired("n2")), &server).await), "CertificateExpired");
    let mut plain = Security::insecure().dial(&server.address, &Pin::default()).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(LONG, plain.read_to_end(&mut answer)).await.expect("it is held for good");
    assert!(answer.len() < 16, "an alert at most: {answer:?}");
    assert!(server.is_silent(), "somebody was let in");

    let expired = Server::start(&Security::mutual(lab.expired("n1")), Limits::default()).await;
    assert_eq!(kind(&outcome(&lab.node("n2"), &expired).await), "expired");
    let mut open = Server::start(&Security::insecure(), Limits::default()).await;
    let (client, address) = (lab.node("n2"), open.address.clone());
    let (found, talked) = tokio::join!(outcome_at(&client, address), async {
        let mut conn = open.next().await;
        // What an HTTP/2 server without TLS begins with.
        conn.write_all(b"\0\0\0\x04\0\0\0\0\0").await.unwrap();
        conn.connect_info().node
    });
    assert_eq!((kind(&found), talked), ("no TLS", None));
}

#[tokio::test]
async fn who_shows_no_certificate_is_hung_up_on_in_time() {
    let limits = Limits { handshake: Duration::from_millis(200), ..Limits::default() };
    let mut server = Server::start(&Authority::of("lab").node("n1"), limits).await;
    let mut mute = TcpStream::connect(&server.address).await.unwrap();
    let read = tokio::time::timeout(LONG, mute.read(&mut [0; 16])).await.expect("it is held for good");
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    assert!(server.is_silent());
}

#[tokio::test]
async fn those_who_wait_are_bounded_and_keep_no_node_out() {
    let lab = Authority::of("lab");
    let limits = Limits { handshake: LONG * 10, waiting: 8 };
    let mut server = Server::start(&lab.node("n1"), limits).await;
    let mut mute = Vec::new();
    for _ in 0..100 {
        mute.push(TcpStream::connect(&server.address).await.unwrap());
    }
    let client = lab.node("n2");
    let _conn = tokio::time::timeout(LONG, client.dial(&server.address, &Pin::default())).await.unwrap().unwrap();
    assert_eq!(server.next().await.connect_info().node.unwrap().as_str(), "n2");
    let mut held = mute.len();
    let began = tokio::time::Instant::now();
    while held > 8 {
        assert!(began.elapsed() < LONG, "{held} mute connections are held");
        mute.retain(|stream| !matches!(stream.try_read(&mut [0; 1]), Ok(0)));
        held = mute.len();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn new_files_are_for_new_connections() {
    let (old, new) = (Authority::of("lab"), Authority::of("lab"));
    let (server_of, client) = (old.node("n1"), new.node("n2"));
    let mut server = Server::start(&server_of, Limits::default()).await;
    let mut kept = old.node("n3").dial(&server.address, &Pin::default()).await.unwrap();
    let mut conn = server.next().await;
    assert_eq!(kind(&outcome(&client, &server).await), "stranger");
    server_of.renew(new.credentials("n1"), Utc::now().timestamp()).unwrap();
    client.dial(&server.address, &Pin::default()).await.unwrap();
    assert_eq!(server.next().await.connect_info().node.unwrap().as_str(), "n2");
    kept.write_all(b"x").await.unwrap();
    kept.flush().await.unwrap();
    assert_eq!(conn.read(&mut [0; 4]).await.unwrap(), 1, "an open connection was cut");
}

#[test]
fn a_good_certificate_gives_way_to_no_bad_one() {
    let (lab, now) = (Authority::of("lab"), Utc::now().timestamp());
    let security = lab.node("n1");
    assert!(matches!(security.renew(lab.expired("n1"), now), Err(Worse::Ended { .. })));
    let later = lab.issue("n1", Utc::now().checked_add_days(chrono::Days::new(20)).unwrap());
    assert_eq!(security.renew(lab.load("n1", &later).unwrap(), now), Err(Worse::NotYet));
    assert_eq!(security.trouble(now), None);
    // There is nothing to lose.
    let ended = Security::mutual(lab.expired("n1"));
    ended.renew(lab.expired("n1"), now).unwrap();
    ended.renew(lab.credentials("n1"), now).unwrap();
    assert_eq!(ended.trouble(now), None);
}

#[test]
fn a_certificate_that_ends_with_its_authority_is_not_to_be_issued_anew() {
    let lab = Authority::of("lab");
    let subject = Subject::Node { cluster: "lab".into(), node: "n1".parse().unwrap() };
    let whole = ca::issue(&lab.pair, &subject, Utc::now(), 1000).unwrap();
    assert_eq!(lab.load("n1", &whole).unwrap().remedy(), REPLACE);
    assert_eq!(lab.credentials("n1").remedy(), RENEW);
}

#[test]
fn files_that_do_not_belong_together_are_refused_with_their_name() {
    let (lab, other, prod) = (Authority::of("lab"), Authority::of("lab"), Authority::of("prod"));
    let said = |error: CredentialsError| crate::chain(&error);
    let now = Utc::now();
    let text = said(lab.load("n2", &lab.issue("n1", now)).unwrap_err());
    assert!(text.contains("node.crt") && text.contains("is of node n1, n2 was expected"), "{text}");
    let text = said(lab.load("n1", &other.issue("n1", now)).unwrap_err());
    assert!(
        text.contains("node.crt") && text.contains("is not signed by the CA in") && text.contains("ca.crt"),
        "{text}"
    );
    let text = said(lab.load("n1", &prod.issue("n1", now)).unwrap_err());
    assert!(text.contains("is of cluster prod, this node of lab"), "{text}");
    let mixed = ca::Pair { key: lab.issue("n1", now).key, ..lab.issue("n1", now) };
    let text = said(lab.load("n1", &mixed).unwrap_err());
    assert!(text.contains("node.key") && text.contains("cannot be used together"), "{text}");
    let empty = ca::Pair { certificate: "nothing".into(), ..lab.issue("n1", now) };
    let text = said(lab.load("n1", &empty).unwrap_err());
    assert!(text.contains("node.crt") && text.contains("holds no certificate"), "{text}");
    let text = said(lab.load("n1", &ca::authority("lab", now, 1).unwrap()).unwrap_err());
    assert!(text.contains("is a CA's, not a node's"), "{text}");

    let dir = tempfile::tempdir().unwrap();
    let missing = Credentials::load(dir.path(), "lab", &"n1".parse().unwrap()).unwrap_err();
    assert!(said(missing).contains("ca.crt"));
}

#[test]
fn one_that_has_ended_is_taken_and_said() {
    let lab = Authority::of("lab");
    let security = Security::mutual(lab.expired("n1"));
    assert!(security.trouble(Utc::now().timestamp()).unwrap().contains("has ended"));
    let good = lab.node("n1");
    assert_eq!(good.trouble(Utc::now().timestamp()), None);
    assert!(good.trouble(Utc::now().timestamp() + 30 * 86_400).unwrap().contains("ends in 2"));
    assert!(Security::insecure().trouble(0).unwrap().contains("insecure = true"));
}

#[test]
fn an_authority_of_another_cluster_is_refused_at_the_start() {
    let (lab, prod) = (Authority::of("lab"), Authority::of("prod"));
    let dir = tempfile::tempdir().unwrap();
    let both = format!("{}{}", lab.pair.certificate, prod.pair.certificate);
    files::write_node(dir.path(), Some(&both), &lab.issue("n1", Utc::now()), false).unwrap();
    let error = Credentials::load(dir.path(), "lab", &"n1".parse().unwrap()).unwrap_err();
    assert!(matches!(error, CredentialsError::Identity { source: IdentityError::Cluster { .. }, .. }), "{error:?}");
    // Two of this cluster: while one takes the other's place.
    let next = Authority::of("lab");
    let both = format!("{}{}", lab.pair.certificate, next.pair.certificate);
    files::write_node(dir.path(), Some(&both), &next.issue("n1", Utc::now()), true).unwrap();
    Credentials::load(dir.path(), "lab", &"n1".parse().unwrap()).unwrap();
}
