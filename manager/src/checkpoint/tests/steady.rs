//! The program the tests put into a container: state in memory, in files and in mappings, asked for over TCP.
//!
//! Compiled by the tests with plain `rustc`, statically, so that a root file system needs nothing else. It is no module
//! of the crate.
//!
//! One line in, one line out, on port 7000: `incr`, `get`, `fill MIB`, `writer` (starts writing), `agree` (mismatches and
//! rounds of the writer), `ghost BYTES`, `removed PATH`, `half-removed PATH`, `close`, `inotify PATH`, `uring`, `threads N`, `fork N`,
//! `listen PORT` (accepts nobody), `accept N` (there).

use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    os::{fd::AsRawFd, unix::fs::FileExt},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

static COUNT: AtomicU64 = AtomicU64::new(0);
static ROUNDS: AtomicU64 = AtomicU64::new(0);
static MISMATCHES: AtomicU64 = AtomicU64::new(0);
static KEPT: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());
static FILES: Mutex<Vec<File>> = Mutex::new(Vec::new());
static SLOW: Mutex<Option<TcpListener>> = Mutex::new(None);

unsafe extern "C" {
    fn mmap(addr: *mut u8, len: usize, prot: i32, flags: i32, fd: i32, off: i64) -> *mut u8;
    fn inotify_init() -> i32;
    fn inotify_add_watch(fd: i32, path: *const u8, mask: u32) -> i32;
    fn syscall(number: i64, ...) -> i64;
    fn fork() -> i32;
    fn pause() -> i32;
}

/// Writes a number to memory, to a file and to a mapped file, and looks before each round whether all three agree. What a
/// restore brings back out of step is found in the first round after it.
fn writer() {
    let plain = OpenOptions::new().read(true).write(true).create(true).truncate(true).open("/data/plain").unwrap();
    let mapped = OpenOptions::new().read(true).write(true).create(true).truncate(true).open("/srv/mapped").unwrap();
    mapped.set_len(4096).unwrap();
    plain.write_all_at(&0u64.to_le_bytes(), 0).unwrap();
    let map = unsafe { mmap(std::ptr::null_mut(), 4096, 3, 1, mapped.as_raw_fd(), 0) } as *mut u64;
    let mut number = 0u64;
    loop {
        let mut bytes = [0; 8];
        plain.read_exact_at(&mut bytes, 0).unwrap();
        if u64::from_le_bytes(bytes) != number || unsafe { map.read_volatile() } != number {
            MISMATCHES.fetch_add(1, Ordering::SeqCst);
        }
        // Nothing between these three can be a dump's view for the loop: it goes on where it stood.
        number += 1;
        unsafe { map.write_volatile(number) };
        plain.write_all_at(&number.to_le_bytes(), 0).unwrap();
        ROUNDS.store(number, Ordering::SeqCst);
    }
}

fn answer(line: &str) -> String {
    let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
    let number = rest.parse::<usize>().unwrap_or(0);
    match verb {
        "incr" => (COUNT.fetch_add(1, Ordering::SeqCst) + 1).to_string(),
        "get" => COUNT.load(Ordering::SeqCst).to_string(),
        "fill" => {
            let block = (0..number << 20).map(|i| (i / 4096 + i) as u8).collect();
            KEPT.lock().unwrap().push(block);
            "ok".into()
        }
        "writer" => {
            std::thread::spawn(writer);
            "ok".into()
        }
        "agree" => format!("{} {}", MISMATCHES.load(Ordering::SeqCst), ROUNDS.load(Ordering::SeqCst)),
        "ghost" => {
            let file =
                OpenOptions::new().read(true).write(true).create(true).truncate(true).open("/srv/ghost").unwrap();
            file.write_all_at(&vec![7; number], 0).unwrap();
            std::fs::remove_file("/srv/ghost").unwrap();
            FILES.lock().unwrap().push(file);
            "ok".into()
        }
        "removed" | "half-removed" => {
            // Written to, a file of the image would become one of the container's own.
            let made = File::open(rest).or_else(|_| File::create(rest)).unwrap();
            if verb == "half-removed" {
                std::fs::hard_link(rest, format!("{rest}-other")).unwrap();
            }
            std::fs::remove_file(rest).unwrap();
            FILES.lock().unwrap().push(made);
            "ok".into()
        }
        "close" => {
            FILES.lock().unwrap().clear();
            "ok".into()
        }
        "inotify" => {
            let path = format!("{rest}\0");
            unsafe { inotify_add_watch(inotify_init(), path.as_ptr(), 2) }.to_string()
        }
        "uring" => {
            let mut params = [0u8; 120];
            let rc = unsafe { syscall(425, 1u32, params.as_mut_ptr()) };
            if rc < 0 { std::io::Error::last_os_error().raw_os_error().unwrap().to_string() } else { "ring".into() }
        }
        "threads" => {
            for _ in 0..number {
                std::thread::spawn(|| unsafe { pause() });
            }
            "ok".into()
        }
        "fork" => {
            for _ in 0..number {
                if unsafe { fork() } == 0 {
                    loop {
                        unsafe { pause() };
                    }
                }
            }
            "ok".into()
        }
        "listen" => {
            *SLOW.lock().unwrap() = Some(TcpListener::bind(("0.0.0.0", number as u16)).unwrap());
            "ok".into()
        }
        "accept" => {
            for _ in 0..number {
                serve(SLOW.lock().unwrap().as_ref().unwrap().accept().unwrap().0);
            }
            "ok".into()
        }
        _ => "what?".into(),
    }
}

fn serve(stream: TcpStream) {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut stream = stream;
        let mut line = String::new();
        while reader.read_line(&mut line).is_ok_and(|n| n > 0) {
            let reply = answer(line.trim());
            if stream.write_all(format!("{reply}\n").as_bytes()).is_err() {
                return;
            }
            line.clear();
        }
    });
}

fn main() {
    // As a second process, from outside.
    if std::env::args().nth(1).as_deref() == Some("wait") {
        unsafe { pause() };
    }
    let listener = TcpListener::bind("0.0.0.0:7000").unwrap();
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        serve(stream);
    }
}
