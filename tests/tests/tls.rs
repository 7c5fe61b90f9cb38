//! Who may speak with a manager over the network, and who is turned away.

mod common;
#[path = "common/forger.rs"]
mod forger;

use std::{fs, path::Path, time::SystemTime};

use chrono::{Days, Utc};
use common::{PATIENCE, cannot_run, operator, wait_until_serving};
use forger::{PORT, is_served, is_served_plainly, nonsense, outside, ping};
use ha_lab::{
    cluster::{CLUSTER, Cluster, Member},
    demo::Workload,
};
use ha_manager::tls::{
    Credentials, Security,
    ca::{self, Pair},
    files,
    identity::Subject,
};
use ha_proto::peer::{Envelope, MAX_MESSAGE};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tonic::{Code, transport::Channel};

fn subject(cluster: &str, node: &str) -> Subject {
    Subject::Node { cluster: cluster.into(), node: node.parse().unwrap() }
}

/// How often the log has a line with all of these words.
fn said(member: &Member, words: &[&str]) -> usize {
    member.log_text().lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
}

/// That the log says it once; it may have been provoked more often.
#[track_caller]
fn said_once(cluster: &Cluster, words: &[&str]) {
    let member = &cluster.members[0];
    cluster.wait(&format!("the log to have {words:?}"), PATIENCE, |_| said(member, words) > 0).unwrap();
    assert_eq!(said(member, words), 1, "{words:?}\n{}", member.log_end());
}

fn trouble(member: &Member) -> String {
    let status = member.json(&["status"]).unwrap();
    let nodes = status["nodes"].as_array().unwrap();
    nodes.iter().find(|node| node["liveness"] == "self").unwrap()["problems"].to_string()
}

fn doctor(member: &Member) -> Value {
    let config = member.node.disk().join("node.toml");
    let output = operator::run(member, &["doctor", "--json", "--config", &config.display().to_string()]);
    let report: Value = serde_json::from_str(&operator::texts(&output).0).unwrap();
    report["checks"].as_array().unwrap().iter().find(|check| check["id"] == "tls.certificate").unwrap().clone()
}

/// A node's channel to the first node.
fn channel(dir: &Path, node: &str) -> Channel {
    let credentials = Credentials::load(dir, CLUSTER, &node.parse().unwrap()).unwrap();
    Security::mutual(credentials).lazy(PORT, PATIENCE, |endpoint| endpoint).unwrap().0
}

fn envelope(from: &str) -> Envelope {
    Envelope {
        cluster: CLUSTER.into(),
        from: from.into(),
        boot: vec![7; 16],
        address: "10.77.0.200:7420".into(),
        ..Envelope::default()
    }
}

#[test]
fn strangers_are_turned_away_and_said_once() {
    if cannot_run("strangers_are_turned_away_and_said_once") {
        return;
    }
    let cluster = Cluster::start(2, "").unwrap();
    let since = SystemTime::now();
    let ours = files::authority(&cluster.authority()).unwrap();
    let (now, long_ago) = (Utc::now(), Utc::now().checked_sub_days(Days::new(900)).unwrap());
    let theirs = ca::authority(CLUSTER, now, 100).unwrap();
    let issue = |by: &Pair, to: Subject, at| ca::issue(by, &to, at, 100).unwrap();
    type Shown = fn(&dyn Fn() -> Pair) -> Option<Pair>;
    let (some, none): (Shown, Shown) = (|make| Some(make()), |_| None);
    let cases: [(&str, Shown, &dyn Fn() -> Pair); 5] = [
        ("it shows no certificate", none, &|| unreachable!()),
        ("not from this cluster's CA", some, &|| issue(&theirs, subject(CLUSTER, "n2"), now)),
        ("of cluster prod, this node of lab", some, &|| issue(&ours, subject("prod", "n2"), now)),
        ("its certificate has ended", some, &|| issue(&ours, subject(CLUSTER, "n2"), long_ago)),
        ("its certificate is not valid yet", some, &|| {
            issue(&ours, subject(CLUSTER, "n2"), now.checked_add_days(Days::new(30)).unwrap())
        }),
    ];
    for (cause, shown, make) in cases {
        for _ in 0..2 {
            let shown = shown(make);
            assert!(!outside(&cluster, || is_served(shown)), "served although {cause}");
        }
        said_once(&cluster, &["a connection was refused", "10.77.0.200", cause]);
    }
    for _ in 0..2 {
        assert!(!outside(&cluster, is_served_plainly));
    }
    said_once(&cluster, &["a connection was refused", "10.77.0.200", "does not speak TLS"]);
    // The same client with what is right.
    let right = issue(&ours, subject(CLUSTER, "n2"), now);
    assert!(outside(&cluster, || is_served(Some(right))));

    // None of this is a node's concern.
    cluster.wait_for_looks(1, PATIENCE).unwrap();
    assert!(common::events_since(&cluster, "peer.suspected", since).is_empty());
    assert!(cluster.members.iter().all(|member| member.sees_alive() == 2));
}

#[test]
fn a_node_speaks_for_itself_only_and_in_sound_messages() {
    if cannot_run("a_node_speaks_for_itself_only_and_in_sound_messages") {
        return;
    }
    let cluster = Cluster::start(2, "").unwrap();
    // A node of this cluster by its certificate, which no manager uses.
    let dir = cluster.lab.dir().join("n7");
    cluster.issue("n7", &dir).unwrap();
    let ask = |envelope: fn() -> Option<Envelope>| {
        let dir = dir.clone();
        outside(&cluster, move || async move { ping(channel(&dir, "n7"), envelope()).await })
    };
    for (envelope, code, cause) in [
        ((|| Some(envelope("n2"))) as fn() -> Option<Envelope>, Code::PermissionDenied, "in the name of n2"),
        (|| Some(Envelope { cluster: "prod".into(), ..envelope("n7") }), Code::FailedPrecondition, "of cluster"),
        (|| None, Code::InvalidArgument, "no envelope"),
        (
            || Some(Envelope { address: "x".repeat(MAX_MESSAGE + 1), ..envelope("n7") }),
            Code::OutOfRange,
            "larger than any that a manager sends",
        ),
    ] {
        for _ in 0..2 {
            let status = ask(envelope).unwrap_err();
            assert_eq!(status.code(), code, "{status:?}");
        }
        said_once(&cluster, &["a peer message was refused", "10.77.0.200", cause]);
    }
    let path = dir.clone();
    let status = outside(&cluster, move || async move { nonsense(channel(&path, "n7")).await });
    assert_eq!(status.code(), Code::Internal, "{status:?}");
    said_once(&cluster, &["a peer message was refused", "10.77.0.200", "cannot be decoded"]);
    assert!(cluster.members.iter().all(|member| member.sees_alive() == 2), "a name that was refused is remembered");
    // In its own name it is heard.
    let reply = ask(|| Some(envelope("n7"))).unwrap();
    assert_eq!(reply.envelope.unwrap().from, "n1");
}

#[test]
fn connections_that_say_nothing_are_hung_up_on_and_keep_no_node_out() {
    if cannot_run("connections_that_say_nothing_are_hung_up_on_and_keep_no_node_out") {
        return;
    }
    let mut cluster = Cluster::start(2, "").unwrap();
    let sockets = |cluster: &Cluster| {
        let dir = format!("/proc/{}/fd", cluster.members[0].manager_pid().unwrap());
        let links = fs::read_dir(dir).unwrap().filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
    };
    let before = sockets(&cluster);
    let open = || (0..400).map(|_| std::net::TcpStream::connect(PORT).unwrap()).collect::<Vec<_>>();
    let mute = cluster.lab.on_client(move || Ok(open())).unwrap().join().unwrap().unwrap();
    // A node that comes anew finds its way in.
    let since = SystemTime::now();
    cluster.members[1].stop_manager(Signal::SIGTERM).unwrap();
    cluster.members[1].start_manager().unwrap();
    cluster.wait_for_event("peer.up", since, 1, PATIENCE).unwrap();
    cluster.wait_for_all().unwrap();
    cluster.wait("the mute to be hung up on", PATIENCE, |cluster| sockets(cluster) <= before + 16).unwrap();
    said_once(&cluster, &["a connection was refused", "10.77.0.200", "shows no certificate within"]);
    drop(mute);
}

#[test]
fn a_certificate_that_ends_soon_is_said_and_a_new_one_taken_without_touching_a_container() {
    if cannot_run("a_certificate_that_ends_soon_is_said_and_a_new_one_taken_without_touching_a_container") {
        return;
    }
    let mut cluster = Cluster::start(2, "").unwrap();
    cluster.members[0].apply(&Workload::Counter.compose(common::NEVER).unwrap()).unwrap();
    let (state, id) = common::state(&cluster);
    let running = cluster.members[0].node.processes("/bin/counter");
    assert_eq!((trouble(&cluster.members[0]).as_str(), &doctor(&cluster.members[0])["verdict"]), ("[]", &"ok".into()));

    let (authority, tls) = (cluster.authority().display().to_string(), cluster.members[0].node.disk().join("tls"));
    let tls = tls.display().to_string();
    let ca = ["ca", "issue", "n1", "--dir", &authority, "--out", &tls];
    let kept = operator::refused(&cluster.members[0], &ca, 1);
    assert!(kept.contains("node.key") && kept.contains("--force"), "{kept}");
    operator::ok(&cluster.members[0], &[&ca[..], &["--days", "10", "--force"]].concat());
    cluster.members[0].stop_manager(Signal::SIGTERM).unwrap();
    cluster.members[0].start_manager().unwrap();
    cluster.wait_for_all().unwrap();
    let member = &cluster.members[0];
    assert!(trouble(member).contains("ends in 1"), "{}", trouble(member));
    assert!(said(member, &["WARN", "certificate ends in 1"]) > 0, "{}", member.log_end());
    let check = doctor(member);
    assert!(check["verdict"] == "warn" && check["remedy"].as_str().unwrap().contains("ca issue"), "{check}");

    operator::ok(member, &[&ca[..], &["--force"]].concat());
    kill(Pid::from_raw(member.manager_pid().unwrap().cast_signed()), Signal::SIGHUP).unwrap();
    cluster.wait("the new certificate to be taken", PATIENCE, |cluster| trouble(&cluster.members[0]) == "[]").unwrap();
    // Files that do not fit change nothing.
    fs::write(format!("{tls}/node.key"), "nothing").unwrap();
    kill(Pid::from_raw(cluster.members[0].manager_pid().unwrap().cast_signed()), Signal::SIGHUP).unwrap();
    said_once(&cluster, &["the certificate stays as it was", "node.key"]);
    assert_eq!(cluster.members[0].sees_alive(), 2);
    assert_eq!(cluster.members[0].node.processes("/bin/counter"), running);
    assert_eq!(common::state(&cluster), (state, id));
}

#[test]
fn a_move_to_a_node_that_cannot_be_connected_to_is_refused_before_anything_is_frozen() {
    if cannot_run("a_move_to_a_node_that_cannot_be_connected_to_is_refused_before_anything_is_frozen") {
        return;
    }
    let cluster = Cluster::start(2, "").unwrap();
    cluster.members[0].apply(&Workload::Counter.compose(common::NEVER).unwrap()).unwrap();
    let before = common::state(&cluster);
    // Another authority's files: what is connected stays so, and the heartbeats go on.
    let theirs = ca::authority(CLUSTER, Utc::now(), 100).unwrap();
    let pair = ca::issue(&theirs, &subject(CLUSTER, "n2"), Utc::now(), 50).unwrap();
    let target = &cluster.members[1];
    files::write_node(&target.node.disk().join("tls"), Some(&theirs.certificate), &pair, true).unwrap();
    kill(Pid::from_raw(target.manager_pid().unwrap().cast_signed()), Signal::SIGHUP).unwrap();
    cluster
        .wait("the files to be read", PATIENCE, |cluster| said(&cluster.members[1], &["was read again"]) > 0)
        .unwrap();
    let since = SystemTime::now();
    let told = operator::refused(&cluster.members[0], &["move", "counter", "--to", "n2"], 5);
    for word in ["n2", "not reached from here", "invalid peer certificate", "goes on here"] {
        assert!(told.contains(word), "{word}: {told}");
    }
    assert!(common::events_since(&cluster, "checkpoint.committed", since).is_empty());
    assert_eq!(common::state(&cluster), before);
}

#[test]
fn without_certificates_it_is_said_everywhere_and_a_node_with_them_keeps_away() {
    if cannot_run("without_certificates_it_is_said_everywhere_and_a_node_with_them_keeps_away") {
        return;
    }
    let mut cluster = Cluster::insecure(2).unwrap();
    // Without the section it is not begun at all.
    let config = cluster.members[0].node.disk().join("node.toml");
    let text = fs::read_to_string(&config).unwrap();
    let bare = operator::file(&cluster.members[0], "bare.toml", &text.replace("tls.insecure = true", ""));
    let refused = operator::refused(&cluster.members[0], &["run", "--config", &bare], 1);
    for word in ["bare.toml:1:1", "`[tls]` is missing", "ha-manager ca init", "insecure = true"] {
        assert!(refused.contains(word), "{word}: {refused}");
    }

    cluster.start_managers().unwrap();
    for member in &cluster.members {
        assert!(trouble(member).contains("neither authenticated nor encrypted"), "{}", trouble(member));
        assert_eq!(said(member, &["WARN", "neither authenticated nor encrypted"]), 1);
        assert_eq!(doctor(member)["verdict"], "warn");
    }
    assert!(outside(&cluster, is_served_plainly));
    cluster.members[0].apply(&Workload::Counter.compose(common::NEVER).unwrap()).unwrap();
    common::checkpoint(&cluster);
    let since = SystemTime::now();
    cluster.members[0].power_cut().unwrap();
    wait_until_serving(&cluster, since);

    // The first node comes back with a certificate.
    cluster.members[0].node.power_on().unwrap();
    let tls = cluster.members[0].node.disk().join("tls");
    cluster.issue("n1", &tls).unwrap();
    fs::write(&config, text.replace("tls.insecure = true", &format!("tls.dir = \"{}\"", tls.display()))).unwrap();
    cluster.members[0].start_manager().unwrap();
    said_once(&cluster, &["no connection to a peer", "10.77.0.2:7420", "does not speak TLS"]);
    said_once(&cluster, &["a connection was refused", "source=10.77.0.2", "does not speak TLS"]);
    assert_eq!(cluster.members[0].sees_alive(), 1);
}
