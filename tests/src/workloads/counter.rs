//! `ha-counter`: a TCP server whose state is in its memory: a number, a chain of hashes over it, and ballast that must
//! be right to the last byte. One file, `std` only, so that a statically linked copy is a whole container image.
//!
//! A line per request, a line per answer:
//!
//! | request | answer |
//! |---|---|
//! | `incr` | the next `VALUE HASH` |
//! | `incr TOKEN` | the same, with the number TOKEN in the chain: two histories that began alike are told apart |
//! | `get` | the current `VALUE HASH` |
//! | `check` | `ok PAGES`, or `broken PAGE` when the ballast has changed |
//! | `id` | a number drawn when the process started: a cold start is told from a restore |
//! | `health` | `ok`, or `sick` |
//! | `sicken` | `sick ASKED`: so it stays, as part of the state; ASKED is how often it has said so |
//! | `arm` | `armed`: the next `incr` ends the process, as part of the state |
//! | `exit CODE` | none: the process ends with CODE |
//!
//! `ha-counter [--listen ADDR] [--ballast-mb N] [--file PATH]… [--tick PATH]`; every `incr` appends its answer to each PATH of
//! `--file`, and each millisecond in which the program runs appends a byte to that of `--tick`.
//! `ha-counter --probe ADDR` asks for its health and exits 0 or 1. The same program is a healthcheck for other servers:
//! `--ask ADDR LINE ANSWER` sends a line and wants that answer; `--knock ADDR` only connects, which the kernel answers for a
//! program that hangs, too.

use std::{
    env,
    fs::{File, OpenOptions},
    hash::{BuildHasher, Hasher, RandomState},
    io::{self, BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    process::{self, ExitCode},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

const PAGE: usize = 4096;

struct State {
    value: u64,
    hash: u64,
    ballast: Vec<u8>,
    files: Vec<File>,
    id: u64,
    /// How often it has been asked for its health since it is sick.
    sick: Option<u64>,
    armed: bool,
}

/// The hash of `value` with its client's token, chained to the one before.
pub fn chain_with(previous: u64, value: u64, token: u64) -> u64 {
    chain(chain(previous, value), token)
}

/// The hash of `value`, chained to the one before (splitmix64's finisher): a wrong history gives a wrong hash.
pub fn chain(previous: u64, value: u64) -> u64 {
    let mut z = previous.wrapping_add(value.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn pattern(page: usize) -> u8 {
    (chain(7, page as u64) & 0xff) as u8 | 1
}

impl State {
    fn new(ballast_mb: usize, files: Vec<File>) -> Self {
        let pages = ballast_mb * (1024 * 1024 / PAGE);
        let mut ballast = vec![0; pages * PAGE];
        for (page, bytes) in ballast.chunks_mut(PAGE).enumerate() {
            bytes.fill(pattern(page));
        }
        let id = RandomState::new().build_hasher().finish();
        Self { value: 0, hash: 0, ballast, files, id, sick: None, armed: false }
    }

    fn count(&mut self, hash: impl FnOnce(u64, u64) -> u64) -> io::Result<String> {
        if self.armed {
            process::exit(70);
        }
        self.value += 1;
        self.hash = hash(self.hash, self.value);
        let line = format!("{} {:016x}", self.value, self.hash);
        for file in &mut self.files {
            writeln!(file, "{line}")?;
        }
        Ok(line)
    }

    fn answer(&mut self, request: &str) -> io::Result<String> {
        if let Some(Ok(token)) = request.strip_prefix("incr ").map(str::parse) {
            return self.count(|hash, value| chain_with(hash, value, token));
        }
        match request {
            "incr" => self.count(chain),
            "get" => Ok(format!("{} {:016x}", self.value, self.hash)),
            "check" => {
                let wrong = |(page, bytes): (usize, &[u8])| bytes.iter().any(|b| *b != pattern(page)).then_some(page);
                Ok(match self.ballast.chunks(PAGE).enumerate().find_map(wrong) {
                    None => format!("ok {}", self.ballast.len() / PAGE),
                    Some(page) => format!("broken {page}"),
                })
            }
            "id" => Ok(format!("{:016x}", self.id)),
            "sicken" => {
                let asked = self.sick.get_or_insert(0);
                Ok(format!("sick {asked}"))
            }
            "health" => Ok(match &mut self.sick {
                Some(asked) => {
                    *asked += 1;
                    "sick".to_owned()
                }
                None => "ok".to_owned(),
            }),
            "arm" => {
                self.armed = true;
                Ok("armed".to_owned())
            }
            other => match other.strip_prefix("exit ").map(str::parse) {
                Some(Ok(code)) => process::exit(code),
                _ => Ok(format!("error: unknown request {other:?}")),
            },
        }
    }
}

fn serve(stream: TcpStream, state: &Mutex<State>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    for line in BufReader::new(stream).lines() {
        let mut answer = state.lock().unwrap_or_else(PoisonError::into_inner).answer(line?.trim())?;
        answer.push('\n');
        writer.write_all(answer.as_bytes())?;
    }
    Ok(())
}

/// As long as it runs the file grows: whoever looks at its length sees whether the program does anything.
fn tick(mut file: File) {
    while file.write_all(b".").is_ok() {
        thread::sleep(Duration::from_millis(1));
    }
}

/// `question`: what to say, and the line that has to come back.
fn probe(address: &str, question: Option<(&str, &str)>) -> io::Result<()> {
    let target = address.parse().map_err(|err| io::Error::other(format!("{address}: {err}")))?;
    let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(2))?;
    let Some((question, wanted)) = question else { return Ok(()) };
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(format!("{question}\r\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    if line.trim_end() == wanted { Ok(()) } else { Err(io::Error::other(format!("{question}: it answers {line:?}"))) }
}

fn appended(path: &str) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

fn run() -> io::Result<()> {
    let (mut listen, mut ballast_mb, mut files, mut ticks) = ("0.0.0.0:7000".to_owned(), 4, Vec::new(), None);
    let mut args = env::args().skip(1);
    while let Some(name) = args.next() {
        let mut next = || args.next().ok_or_else(|| io::Error::other(format!("{name} needs another value")));
        let value = next()?;
        match name.as_str() {
            "--probe" => return probe(&value, Some(("health", "ok"))),
            "--ask" => return probe(&value, Some((&next()?, &next()?))),
            "--knock" => return probe(&value, None),
            "--listen" => listen = value,
            "--ballast-mb" => ballast_mb = value.parse().map_err(io::Error::other)?,
            "--file" => files.push(appended(&value)?),
            "--tick" => ticks = Some(appended(&value)?),
            _ => return Err(io::Error::other(format!("unknown option {name}"))),
        }
    }
    let state = Arc::new(Mutex::new(State::new(ballast_mb, files)));
    let listener = TcpListener::bind(&listen)?;
    println!("listening on {listen}");
    if let Some(file) = ticks {
        thread::Builder::new().stack_size(64 * 1024).spawn(move || tick(file))?;
    }
    for stream in listener.incoming() {
        let (stream, state) = (stream?, Arc::clone(&state));
        thread::Builder::new().stack_size(64 * 1024).spawn(move || {
            if let Err(err) = serve(stream, &state) {
                eprintln!("connection: {err}");
            }
        })?;
    }
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("ha-counter: {err}");
            ExitCode::FAILURE
        }
    }
}
