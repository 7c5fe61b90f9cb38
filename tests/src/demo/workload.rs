//! The programs of the demo: how each is described to the manager, and the client that tells whether it survived.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, ensure};

use crate::{
    clients::{
        counter::{Counter, Poller, connect_patiently},
        redis::Redis,
        rtsp::Player,
    },
    images,
    lab::{Cut, Lab},
};

/// The container's address.
pub const ADDRESS: &str = "10.77.1.50";
/// How long a client waits for the container to come up, or back.
const PATIENCE: Duration = Duration::from_secs(30);

/// A program worth protecting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Workload {
    /// Video over RTSP, by VLC.
    Vlc,
    /// A key-value store.
    Redis,
    /// A small TCP server whose state is a number.
    Counter,
}

impl Workload {
    pub fn name(self) -> &'static str {
        match self {
            Self::Vlc => "vlc",
            Self::Redis => "redis",
            Self::Counter => "counter",
        }
    }

    fn port(self) -> u16 {
        match self {
            Self::Vlc => 8554,
            Self::Redis => 6379,
            Self::Counter => 7000,
        }
    }

    fn address(self) -> anyhow::Result<SocketAddr> {
        Ok(format!("{ADDRESS}:{}", self.port()).parse()?)
    }

    /// What the container runs.
    pub fn command(self) -> Vec<String> {
        let words: &[&str] = match self {
            Self::Vlc => &images::vlc::COMMAND,
            Self::Redis => &["/bin/redis-server", "--save", "", "--protected-mode", "no", "--appendonly", "no"],
            Self::Counter => &["/bin/counter", "--ballast-mb", "4"],
        };
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn healthcheck(self) -> Vec<String> {
        let (program, how, answer): (_, _, &[&str]) = match self {
            Self::Counter => ("/bin/counter", "--probe", &[]),
            Self::Redis => ("/bin/probe", "--ask", &["PING", "+PONG"]),
            Self::Vlc => ("/bin/probe", "--knock", &[]),
        };
        let address = format!("127.0.0.1:{}", self.port());
        ["CMD", program, how, &address].into_iter().chain(answer.iter().copied()).map(str::to_owned).collect()
    }

    /// The Compose file: the container is checkpointed at least every `sensitivity`.
    ///
    /// # Errors
    /// When the image cannot be built.
    pub fn compose(self, sensitivity: &str) -> anyhow::Result<String> {
        self.compose_with(&self.command(), Some(sensitivity))
    }

    /// As `compose`, with another command, and stateless without a sensitivity.
    ///
    /// # Errors
    /// As `compose`.
    pub fn compose_with(self, command: &[String], sensitivity: Option<&str>) -> anyhow::Result<String> {
        let annotations = match sensitivity {
            Some(sensitivity) => serde_json::json!({
                "io.ha-manager.state": "stateful",
                "io.ha-manager.state-sensitivity": sensitivity,
            }),
            None => serde_json::json!({ "io.ha-manager.state": "stateless" }),
        };
        // JSON is YAML: nothing has to be quoted by hand.
        let service = serde_json::json!({
            "image": images::cached(self.name())?,
            "command": command,
            "networks": { "default": { "ipv4_address": ADDRESS } },
            "healthcheck": { "test": self.healthcheck(), "interval": "1s", "timeout": "2s", "retries": 3 },
            "restart": "always",
            "annotations": annotations,
        });
        Ok(serde_json::to_string_pretty(&serde_json::json!({ "services": { self.name(): service } }))?)
    }

    /// Starts the client and waits until it is served.
    ///
    /// # Errors
    /// When the container does not serve.
    pub fn client(self, lab: &Lab) -> anyhow::Result<Box<dyn Client>> {
        let address = self.address()?;
        Ok(match self {
            Self::Vlc => Box::new(Viewer::start(lab, address)?),
            Self::Redis => Box::new(Writer::start(lab, address)?),
            Self::Counter => Box::new(Incrementer::start(lab, address)?),
        })
    }
}

/// What a client has to say after the failover.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// The longest time without an answer or packet that ends after the cut.
    pub gap: Duration,
    /// When the first answer or packet came from the restored container.
    pub first: Option<SystemTime>,
    /// The same session (connection, process, source) as before the cut.
    pub session_kept: bool,
    /// What was compared, a sentence each; for people.
    pub findings: Vec<String>,
}

/// A client of the demo.
pub trait Client {
    /// Waits until the container is served again after the cut.
    ///
    /// # Errors
    /// When it is not within half a minute.
    fn wait_until_back(&self, cut: &Cut) -> anyhow::Result<()>;

    /// Ends the client and judges. `frozen_at`: when the restored state was frozen, on the wall clock.
    ///
    /// # Errors
    /// When state is wrong or lost beyond the last committed checkpoint.
    fn verdict(&mut self, cut: &Cut, frozen_at: SystemTime) -> anyhow::Result<Verdict>;
}

/// The longest pause among `times` that ends after `cut`, and its end.
pub fn gap_over(times: impl IntoIterator<Item = Instant>, cut: Instant) -> Option<(Duration, Instant)> {
    let times: Vec<Instant> = times.into_iter().collect();
    times.windows(2).filter(|pair| pair[1] > cut).map(|pair| (pair[1] - pair[0], pair[1])).max()
}

/// A number for people, where there may be none.
fn known(number: Option<impl std::fmt::Display>) -> String {
    number.map_or_else(|| "(not known)".to_owned(), |number| number.to_string())
}

fn wait(what: &str, mut condition: impl FnMut() -> bool) -> anyhow::Result<()> {
    let start = Instant::now();
    while !condition() {
        ensure!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

struct Viewer {
    player: Player,
    playing: Option<thread::JoinHandle<anyhow::Result<()>>>,
}

impl Viewer {
    fn start(lab: &Lab, address: SocketAddr) -> anyhow::Result<Self> {
        let (player, run) = Player::new(address, "x", PATIENCE);
        let playing = lab.on_client(run)?;
        wait("the stream", || player.count() > 100 || playing.is_finished())?;
        let mut viewer = Self { player, playing: Some(playing) };
        viewer.alive()?;
        Ok(viewer)
    }

    /// The player's error, when it has ended by itself.
    fn alive(&mut self) -> anyhow::Result<()> {
        if self.playing.as_ref().is_some_and(thread::JoinHandle::is_finished) {
            self.end()?;
            anyhow::bail!("the player ended by itself");
        }
        Ok(())
    }

    fn end(&mut self) -> anyhow::Result<()> {
        self.player.stop();
        let playing = self.playing.take().map(thread::JoinHandle::join);
        playing.map_or(Ok(()), |ended| ended.unwrap_or_else(|_| anyhow::bail!("the player panicked")))
    }
}

impl Client for Viewer {
    fn wait_until_back(&self, cut: &Cut) -> anyhow::Result<()> {
        // Packets that were under way at the cut come within milliseconds of it; the stream's own pause is longer.
        let back = || {
            let seen = self.player.seen();
            let last = seen.last_before(cut.instant).map_or(cut.instant, |packet| packet.instant);
            seen.packets.iter().rev().take(50).any(|packet| packet.instant > last + Duration::from_millis(100))
        };
        wait("the stream to come back", back)?;
        self.player.ask_for_session();
        wait("the server to answer for the session", || {
            self.player.seen().asked.iter().any(|(at, _)| *at > cut.instant)
        })
    }

    fn verdict(&mut self, cut: &Cut, _frozen_at: SystemTime) -> anyhow::Result<Verdict> {
        self.end()?;
        let seen = self.player.seen();
        let times = seen.packets.iter().map(|packet| packet.instant);
        let (gap, end) = gap_over(times, cut.instant).context("no packet after the cut")?;
        let first = seen.first_after(end - Duration::from_micros(1)).map(|packet| packet.at);
        let knows = seen.asked.iter().any(|(at, knows)| *at > cut.instant && *knows);
        let sources = seen.sources();
        let reconnected = seen.errors.iter().any(|(at, _)| *at > cut.instant);
        let before = seen.last_before(cut.instant).map(|packet| packet.sequence);
        let after = seen.first_after(end - Duration::from_micros(1)).map(|packet| packet.sequence);
        let findings = vec![
            format!("{} packets, {} source(s)", seen.packets.len(), sources.len()),
            format!("session {} {} to the server", seen.session, if knows { "is known" } else { "is NOT known" }),
            format!("control connection {}", if reconnected { "was reset and made anew" } else { "is the same" }),
            format!("sequence {} before the cut, {} after", known(before), known(after)),
        ];
        Ok(Verdict { gap, first, session_kept: knows && sources.len() == 1, findings })
    }
}

struct Incrementer {
    poller: Poller,
    polling: Option<thread::JoinHandle<anyhow::Result<()>>>,
    idle: Counter,
    id: String,
}

impl Incrementer {
    fn start(lab: &Lab, address: SocketAddr) -> anyhow::Result<Self> {
        let connect = move || {
            let mut idle = connect_patiently(address, PATIENCE)?;
            let id = idle.id()?;
            Ok((idle, id))
        };
        let (idle, id) = join(lab.on_client(connect)?)?;
        let (poller, run) = Poller::new(address, Duration::from_millis(2), Duration::from_millis(250));
        let polling = Some(lab.on_client(run)?);
        Ok(Self { poller, polling, idle, id })
    }
}

fn join<T>(thread: thread::JoinHandle<anyhow::Result<T>>) -> anyhow::Result<T> {
    thread.join().unwrap_or_else(|_| anyhow::bail!("a client panicked"))
}

impl Client for Incrementer {
    fn wait_until_back(&self, cut: &Cut) -> anyhow::Result<()> {
        let after = cut.instant + Duration::from_millis(100);
        wait("the counter to come back", || self.poller.last().is_some_and(|answer| answer.instant > after))
    }

    fn verdict(&mut self, cut: &Cut, frozen_at: SystemTime) -> anyhow::Result<Verdict> {
        self.poller.stop();
        self.polling.take().map_or(Ok(()), join)?;
        let seen = self.poller.seen();
        ensure!(seen.wrong.is_empty(), "the counter's history is wrong: {:?}", seen.wrong);
        let times = seen.answers.iter().map(|answer| answer.instant);
        let (gap, end) = gap_over(times, cut.instant).context("no answer after the cut")?;
        let first = seen.first_after(end - Duration::from_micros(1)).context("no answer after the cut")?;
        ensure!(first.state.is_genuine(), "the first state after the cut was invented: {:?}", first.state);
        let restored = first.state.value - 1;
        // The request that was answered last before the freeze is in the state for certain.
        let saved = seen.last_before(frozen_at - Duration::from_millis(5)).map_or(0, |answer| answer.state.value);
        let told = seen.last_before(cut.at).map_or(0, |answer| answer.state.value);
        ensure!(restored >= saved, "{restored} was restored, but {saved} had been answered before the checkpoint");
        // `told + 1`: the server may have counted a request whose answer was lost in the cut.
        ensure!(restored <= told + 1, "{restored} was restored, more than the {told} ever answered");
        let idle = self.idle.get();
        let same_process = idle.is_ok() && self.idle.id()? == self.id;
        if idle.is_ok() {
            self.idle.check()?;
        }
        let findings = vec![
            format!("{told} answered before the cut, {restored} restored, at least {saved} owed"),
            format!("idle connection: {}", idle.as_ref().map_or_else(ToString::to_string, |_| "still open".to_owned())),
            format!(
                "process {}",
                if same_process { "is the same, every page right" } else { "is NOT known to be the same" }
            ),
            format!("{} reconnection(s) of the busy client", seen.errors.len()),
        ];
        Ok(Verdict { gap, first: Some(first.at), session_kept: same_process, findings })
    }
}

#[derive(Debug, Clone, Copy)]
struct Written {
    at: SystemTime,
    key: u64,
}

/// Three connections: one writes keys until it is lost, one asks all the time and comes back, one is idle meanwhile.
struct Writer {
    written: Arc<Mutex<Vec<Written>>>,
    answers: Arc<Mutex<Vec<(SystemTime, Instant)>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<anyhow::Result<()>>>,
    idle: Redis,
    id: String,
}

impl Writer {
    fn start(lab: &Lab, address: SocketAddr) -> anyhow::Result<Self> {
        let connect = move || {
            let start = Instant::now();
            loop {
                let mut attempt = Redis::connect(address, Duration::from_millis(500));
                match attempt.as_mut().map_or_else(|_| None, |redis| redis.run_id().ok()) {
                    Some(id) => return Ok((attempt?, id)),
                    None if start.elapsed() > PATIENCE => anyhow::bail!("no redis at {address}"),
                    None => thread::sleep(Duration::from_millis(10)),
                }
            }
        };
        let (idle, id) = join(lab.on_client(connect)?)?;
        let (written, answers, stop) = (Arc::default(), Arc::default(), Arc::default());
        let write = {
            let (written, stop) = (Arc::clone(&written), Arc::clone(&stop));
            move || write_until_lost(address, &written, &stop)
        };
        let ask = {
            let (answers, stop) = (Arc::clone(&answers), Arc::clone(&stop));
            move || ask_always(address, &answers, &stop)
        };
        let threads = vec![lab.on_client(write)?, lab.on_client(ask)?];
        Ok(Self { written, answers, stop, threads, idle, id })
    }
}

fn write_until_lost(address: SocketAddr, written: &Mutex<Vec<Written>>, stop: &AtomicBool) -> anyhow::Result<()> {
    // Longer than any checkpoint's pause.
    let mut redis = Redis::connect(address, Duration::from_secs(3))?;
    let mut key = 0;
    while !stop.load(Ordering::Relaxed) {
        key += 1;
        if redis.write(key).is_err() {
            break;
        }
        let entry = Written { at: SystemTime::now(), key };
        written.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn ask_always(
    address: SocketAddr,
    answers: &Mutex<Vec<(SystemTime, Instant)>>,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    let mut redis = None;
    while !stop.load(Ordering::Relaxed) {
        let connection = match redis.take() {
            Some(connection) => Ok(connection),
            None => Redis::connect(address, Duration::from_millis(250)),
        };
        let asked = connection.and_then(|mut redis| redis.command(&["PING"]).map(|_| redis));
        if let Ok(connection) = asked {
            redis = Some(connection);
            answers.lock().unwrap_or_else(PoisonError::into_inner).push((SystemTime::now(), Instant::now()));
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

impl Client for Writer {
    fn wait_until_back(&self, cut: &Cut) -> anyhow::Result<()> {
        let after = cut.instant + Duration::from_millis(100);
        let last = || self.answers.lock().unwrap_or_else(PoisonError::into_inner).last().copied();
        wait("redis to come back", || last().is_some_and(|(_, instant)| instant > after))
    }

    fn verdict(&mut self, cut: &Cut, frozen_at: SystemTime) -> anyhow::Result<Verdict> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            join(thread)?;
        }
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let times = answers.iter().map(|(_, instant)| *instant);
        let (gap, end) = gap_over(times, cut.instant).context("no answer after the cut")?;
        let first = answers.iter().find(|(_, instant)| *instant == end).map(|(at, _)| *at);
        let last = written.last().context("nothing was written")?;
        let owed = written.iter().rev().find(|entry| entry.at <= frozen_at - Duration::from_millis(5));
        let owed = owed.map_or(0, |entry| entry.key);
        let verified = self.idle.verify();
        let same_process = verified.is_ok() && self.idle.run_id()? == self.id;
        let restored = verified.as_ref().ok().copied();
        if let Some(restored) = restored {
            ensure!(
                restored >= owed,
                "{restored} keys were restored, but {owed} had been written before the checkpoint"
            );
            ensure!(restored <= last.key + 1, "{restored} keys were restored, more than the {} written", last.key);
        }
        let findings = vec![
            format!(
                "{} keys written before the cut, {} restored and right, at least {owed} owed",
                last.key,
                known(restored)
            ),
            format!("idle connection: {}", verified.map_or_else(|err| err.to_string(), |_| "still open".to_owned())),
            format!("process {}", if same_process { "is the same" } else { "is NOT known to be the same" }),
        ];
        Ok(Verdict { gap, first, session_kept: same_process, findings })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gap_is_the_longest_that_ends_after_the_cut() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        // A longer pause before the cut (a checkpoint, say) is not the failover's.
        let times = [0, 500, 600, 610, 615, 900, 910].map(at);
        assert_eq!(gap_over(times, at(612)), Some((Duration::from_millis(285), at(900))));
        assert_eq!(gap_over(times, at(920)), None);
    }
}
