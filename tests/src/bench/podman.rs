//! The same program under podman, where it is installed: export a checkpoint, import it.

use std::{
    process::{Command, Stdio},
    time::Instant,
};

use super::Figure;
use crate::{
    images,
    lab::{Lab, Node, NodeOptions},
};

/// Podman's own storage on the node's disk, cgroups without systemd, and the runtime that can checkpoint.
fn podman(node: &Node, args: &str) -> anyhow::Result<Command> {
    let disk = node.disk();
    let disk = disk.display();
    let mut command = node.command("podman")?;
    command.args(["--cgroup-manager=cgroupfs", "--runtime=runc", "--storage-driver=vfs", "--runroot=/run/podman"]);
    command.arg(format!("--root={disk}/podman")).arg("--tmpdir=/run/podman-tmp").args(args.split(' '));
    command.stdin(Stdio::null());
    Ok(command)
}

/// Milliseconds that a command took.
fn timed(mut command: Command) -> anyhow::Result<f64> {
    let begin = Instant::now();
    crate::run(&mut command)?;
    Ok(begin.elapsed().as_secs_f64() * 1000.0)
}

/// Checkpoints with `--export` and restores with `--import`, on one node, `samples` times.
///
/// # Errors
/// With what podman said.
pub(super) fn measure(samples: usize) -> anyhow::Result<Vec<Option<Figure>>> {
    if !crate::have("podman") {
        crate::skipped("podman", "not installed: run scripts/setup --tests");
        return Ok(Vec::new());
    }
    let lab = Lab::new()?;
    let node = lab.node(1, NodeOptions::default())?;
    let archive = node.disk().join("rootfs.tar");
    let mut tar = Command::new("tar");
    crate::run(tar.arg("-C").arg(images::cached("counter")?).arg("-cf").arg(&archive).arg("."))?;
    crate::run(&mut podman(&node, &format!("import -q {} localhost/counter", archive.display()))?)?;
    let export = node.disk().join("checkpoint.tar.zst");
    let (mut checkpoints, mut restores) = (Vec::new(), Vec::new());
    let options = "--network=none --log-driver=none";
    for _ in 0..samples {
        // Its monitor keeps the standard output, so nobody may wait for that to end.
        let mut start = podman(&node, &format!("run -d --name c {options} localhost/counter /bin/counter"))?;
        start.stdout(Stdio::null()).stderr(Stdio::null());
        anyhow::ensure!(start.status()?.success(), "podman run failed");
        let file = export.display();
        checkpoints.push(timed(podman(&node, &format!("container checkpoint --export={file} c"))?)?);
        crate::run(&mut podman(&node, "rm -f c")?)?;
        restores.push(timed(podman(&node, &format!("container restore --import={file}"))?)?);
        crate::run(&mut podman(&node, "rm -f -t 0 c")?)?;
        std::fs::remove_file(&export)?;
    }
    Ok(vec![
        Figure::new("podman_checkpoint_ms/counter", "ms", &checkpoints),
        Figure::new("podman_restore_ms/counter", "ms", &restores),
    ])
}
