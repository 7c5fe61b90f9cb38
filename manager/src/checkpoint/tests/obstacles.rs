//! What CRIU would fail on is named before the freeze.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use super::lab::{Lab, alone, skipped};
use crate::checkpoint::{DumpError, Obstacle, preflight};

#[test]
fn inotify_on_the_overlay_is_refused_by_name_and_on_a_volume_it_is_not() {
    if skipped("inotify_on_the_overlay_is_refused_by_name_and_on_a_volume_it_is_not") {
        return;
    }
    let _alone = alone();
    let lab = Lab::new();
    let mut place = lab.place();
    let pid = place.start();
    let mut client = lab.client();
    client.ask("inotify /data");
    place.dump(pid);
    client.ask("inotify /srv");
    let error = place.dump_with(&place.request(pid), &mut super::lab::NoGate).unwrap_err();
    let DumpError::Obstacles(obstacles) = &error else { panic!("{error:?}") };
    println!("{error}");
    assert_eq!((obstacles.len(), obstacles[0].pid, obstacles[0].program.as_str()), (1, pid, "steady"));
    assert!(obstacles[0].fd.is_some() && obstacles[0].what.contains("inotify"), "{obstacles:?}");
}

#[test]
fn io_uring_is_answered_with_not_implemented() {
    if skipped("io_uring_is_answered_with_not_implemented") {
        return;
    }
    let _alone = alone();
    let lab = Lab::new();
    let mut place = lab.place();
    place.start();
    assert_eq!(lab.client().ask("uring"), libc::ENOSYS.to_string());
}

#[test]
fn a_session_from_outside_is_refused() {
    if skipped("a_session_from_outside_is_refused") {
        return;
    }
    let _alone = alone();
    let lab = Lab::new();
    let mut place = lab.place();
    let pid = place.start();
    lab.client();
    let root = lab.runc.root().display().to_string();
    let mut session =
        Command::new("runc").args(["--root", &root, "exec", &place.id, "/steady", "wait"]).spawn().unwrap();
    let deadline = std::time::Instant::now() + super::lab::LONG;
    let found = loop {
        let found = preflight(pid);
        if found.iter().any(|obstacle| obstacle.program == "steady") || std::time::Instant::now() > deadline {
            break found;
        }
    };
    drop(place);
    session.wait().unwrap();
    println!("{found:?}");
    assert!(found.iter().any(|obstacle| obstacle.what.contains("exec session")), "{found:?}");
}

#[test]
fn large_deleted_files_are_dumped() {
    if skipped("large_deleted_files_are_dumped") {
        return;
    }
    let _alone = alone();
    let lab = Lab::new();
    let mut place = lab.place();
    let pid = place.start();
    lab.client().ask("ghost 5000000");
    let (request, report) = place.dump(pid);
    assert!(report.image_bytes > 5_000_000, "{report:?}");
    place.destroy();
    let mut there = lab.place();
    there.restore(&request);
    assert_eq!(lab.client().ask("incr"), "1");
}

#[test]
fn a_file_that_has_lost_one_of_its_names_is_refused_by_name() {
    if skipped("a_file_that_has_lost_one_of_its_names_is_refused_by_name") {
        return;
    }
    let _alone = alone();
    let lab = Lab::new();
    let mut place = lab.place();
    let pid = place.start();
    let mut client = lab.client();
    // One of two names of a file of its own; the only name of a file of the image.
    for (ask, name) in [("half-removed /data/half", "/data/half"), ("removed /srv/lower-file", "/srv/lower-file")] {
        client.ask(ask);
        let error = place.dump_with(&place.request(pid), &mut super::lab::NoGate).unwrap_err();
        let DumpError::Obstacles(obstacles) = &error else { panic!("{error:?}") };
        println!("{error}");
        assert!(obstacles.len() == 1 && obstacles[0].fd.is_some() && obstacles[0].what.contains(name), "{obstacles:?}");
        client.ask("close");
    }
    // The only name of a file of its own: CRIU keeps the content.
    client.ask("removed /data/mine");
    place.dump(pid);
}

/// A python that does `setup`, says so, and waits; its obstacles.
fn obstacles_of(setup: &str) -> Option<Vec<Obstacle>> {
    let script = format!("import os,socket,ctypes,time\n{setup}\nprint('ready',flush=True)\ntime.sleep(600)");
    let mut child: Child =
        Command::new("python3").args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().ok()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take()?).read_line(&mut line).ok()?;
    let found = (line.trim() == "ready").then(|| preflight(child.id() as i32));
    child.kill().unwrap();
    child.wait().unwrap();
    found
}

#[test]
fn what_cannot_be_dumped_is_named_with_its_descriptor() {
    if skipped("what_cannot_be_dumped_is_named_with_its_descriptor") {
        return;
    }
    let listener = tempfile::tempdir().unwrap();
    let path = listener.path().join("sock");
    let _outside = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let datagram = listener.path().join("gram");
    let _gram = std::os::unix::net::UnixDatagram::bind(&datagram).unwrap();
    let cases = [
        ("p=ctypes.create_string_buffer(120); assert ctypes.CDLL(None).syscall(425,1,p)>=0".to_owned(), "io_uring"),
        (format!("s=socket.socket(socket.AF_UNIX); s.connect('{}')", path.display()), "outside the container"),
        (
            format!("s=socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM); s.connect('{}')", datagram.display()),
            "outside the container",
        ),
        ("s=socket.socket(socket.AF_INET,socket.SOCK_STREAM,262)".to_owned(), "Multipath TCP"),
        ("s=socket.socket(38,5)".to_owned(), "kernel crypto"),
        ("m,s=os.openpty(); os.close(m)".to_owned(), "terminal"),
    ];
    for (setup, expected) in cases {
        let Some(found) = obstacles_of(&setup) else {
            println!(
                "SKIPPED what_cannot_be_dumped_is_named_with_its_descriptor, {expected}: this kernel has none, or no python3"
            );
            continue;
        };
        let hit = found.iter().find(|obstacle| obstacle.what.contains(expected));
        assert!(hit.is_some_and(|hit| hit.fd.is_some()), "{expected}: {found:?}");
    }
    // A pair with both ends inside, and a connection not accepted yet, are no obstacle.
    let fine = "a=socket.socketpair(); l=socket.socket(socket.AF_UNIX); l.bind('\\0ha-ck-'+str(os.getpid())); l.listen(); \
                c=socket.socket(socket.AF_UNIX); c.connect(l.getsockname()); m,s=os.openpty()";
    if let Some(found) = obstacles_of(fine) {
        assert!(found.iter().all(|obstacle| obstacle.fd.is_none()), "{found:?}");
    }
}
