//! A container's state across dumps and restores.

use std::{fs, path::Path, process::Stdio};

use super::lab::{LONG, Lab, alone, run, skipped};
use crate::{
    checkpoint::{CpuError, cpu::CPUINFO},
    runtime::{Bind, Runtime, Tmpfs},
};

#[test]
fn a_dump_leaves_the_container_running_and_a_restore_brings_its_state_back() {
    if skipped("a_dump_leaves_the_container_running_and_a_restore_brings_its_state_back") {
        return;
    }
    let _alone = alone();
    let lab = Lab::new();
    let mut here = lab.place();
    let pid = here.start();
    let mut client = lab.client();
    for _ in 0..41 {
        client.ask("incr");
    }
    assert_eq!(client.ask("incr"), "42");
    let (images, report) = here.dump(pid);
    println!("{report:?}");
    assert_eq!(client.ask("incr"), "43", "the container goes on, on the same connection");
    assert!(report.pages_written > 10);
    here.destroy();

    let mut there = lab.place();
    there.restore(&images);
    let mut client = lab.client();
    assert_eq!(client.ask("get"), "42");
}

#[test]
fn connections_not_accepted_yet_go_on_and_are_not_in_the_images() {
    if skipped("connections_not_accepted_yet_go_on_and_are_not_in_the_images") {
        return;
    }
    let _alone = alone();
    let lab = Lab::new();
    let mut here = lab.place();
    let pid = here.start();
    let mut first = lab.client();
    first.ask("listen 7001");
    let mut waiting: Vec<_> = (0..4).map(|_| lab.client_of(7001)).collect();
    let (images, _) = here.dump(pid);
    here.dump(pid);
    first.ask("accept 3");
    for (client, count) in waiting.iter_mut().zip(1..=3) {
        assert_eq!(client.ask("incr"), count.to_string(), "they do not notice the dump");
    }
    here.destroy();

    let mut there = lab.place();
    there.restore(&images);
    for client in &mut waiting {
        assert!(client.try_ask("get").is_err(), "the restored container cannot know it");
    }
    let mut again = lab.client_of(7001);
    assert_eq!(lab.client().ask("accept 1"), "ok");
    assert_eq!(again.ask("incr"), "1");
}

#[test]
fn three_generations_keep_memory_files_and_mappings_in_step() {
    if skipped("three_generations_keep_memory_files_and_mappings_in_step") {
        return;
    }
    let _alone = alone();
    let lab = Lab::new();
    let mut place = lab.place();
    let mut pid = place.start();
    let mut client = lab.client();
    client.ask("writer");
    for generation in 1..=3 {
        // Two dumps of each: the first must leave nothing behind that disturbs the second.
        place.dump(pid);
        client.ask("incr");
        let (mismatches, rounds) = client.agree();
        let (images, report) = place.dump(pid);
        println!("generation {generation}: {report:?}");
        assert_eq!(mismatches, 0);
        place.destroy();
        place = lab.place();
        pid = place.restore(&images);
        client = lab.client();
        assert_eq!(client.ask("get"), generation.to_string());
        let (mismatches, later) = client.agree();
        assert_eq!(mismatches, 0, "memory, file and mapping agreed in each of {later} rounds");
        assert!(later >= rounds, "{later} rounds after the restore, {rounds} before the dump");
        let deadline = std::time::Instant::now() + LONG;
        while client.agree().1 == later {
            assert!(std::time::Instant::now() < deadline, "the writer goes on");
        }
        assert_eq!(client.agree().0, 0);
    }
}

#[test]
fn plain_runc_restores_the_images_with_mounts_of_the_users() {
    if skipped("plain_runc_restores_the_images_with_mounts_of_the_users") {
        return;
    }
    let _alone = alone();
    let lab = Lab::new();
    let shared = lab.dir.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("config"), "shared").unwrap();
    let cgroup = format!("/{}", lab.name);
    let mounts = |spec: &mut crate::runtime::BundleSpec| {
        // Without our configuration CRIU wants the cgroup to have the name it had, as it has on every node.
        spec.cgroups_path = cgroup.clone();
        spec.agent_bin_dir = Some(shared.clone());
        spec.binds.push(Bind { source: shared.clone(), target: "/opt/shared".into(), read_only: true });
        spec.binds.push(Bind { source: shared.join("config"), target: "/etc/one-file".into(), read_only: true });
        spec.tmpfs.push(Tmpfs { target: "/cache".into(), size_bytes: Some(1 << 20), read_only: false });
    };
    let mut here = lab.place_with(mounts);
    let pid = here.start();
    let mut client = lab.client();
    client.ask("incr");
    client.ask("threads 5");
    client.ask("fork 3");
    fs::write(format!("/proc/{pid}/root/cache/kept"), "in memory").unwrap();
    let (images, _) = here.dump(pid);
    here.destroy();

    let mut there = lab.place_with(mounts);
    for sub in ["upper", "data"] {
        fs::remove_dir(there.dir.join(sub)).unwrap();
        run("cp", &["-a", &format!("{}/{sub}", images.staging.display()), &there.dir.display().to_string()]);
    }
    there.mount();
    // Nothing of ours but the bundle and the images: no configuration for CRIU either.
    let config = there.spec.dir.join("config.json");
    let mut text: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    text["annotations"].as_object_mut().unwrap().remove("org.criu.config");
    fs::write(&config, text.to_string()).unwrap();
    let path = |path: &Path| path.display().to_string();
    let status = std::process::Command::new("runc")
        .args(["--root", &path(lab.runc.root()), "restore", "--detach", "--tcp-established", "--file-locks"])
        .args(["--bundle", &path(&there.spec.dir), "--image-path", &path(&images.images)])
        .args(["--work-path", &path(&there.dir), &there.id])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    let log = crate::checkpoint::logs::decisive_lines(&there.dir.join("restore.log"));
    let restored = there.adopt();
    assert!(status.success(), "{log:?}");
    assert_eq!(lab.client().ask("get"), "1");
    assert_eq!(fs::read_to_string(format!("/proc/{restored}/root/cache/kept")).unwrap(), "in memory");
    assert_eq!(fs::read_to_string(format!("/proc/{restored}/root/etc/one-file")).unwrap(), "shared");
    // And what plain runc restored can be dumped again.
    there.dump(restored);
    assert_eq!(lab.runc.state(&there.id, LONG).unwrap().unwrap().pid, restored);
}

#[test]
fn the_images_say_on_which_cpu_they_were_made() {
    if skipped("the_images_say_on_which_cpu_they_were_made") {
        return;
    }
    let _alone = alone();
    let lab = Lab::new();
    let mut place = lab.place();
    let pid = place.start();
    lab.client();
    let (images, _) = place.dump(pid);
    let cpuinfo = fs::read(images.images.join(CPUINFO)).unwrap();
    assert_eq!(cpuinfo, lab.dumper.cpuinfo(LONG).unwrap());
    lab.dumper.check_cpu(&cpuinfo, LONG).unwrap();
    // A CPU with every feature there is: its capability words are the longest run of bytes in the message.
    let mut other = cpuinfo.clone();
    let middle = other.len() / 2;
    other[16..middle].fill(0xff);
    assert!(matches!(lab.dumper.check_cpu(&other, LONG), Err(CpuError::Incompatible { .. })));
}
