//! A small redis client: writes numbered keys and reads every one of them back.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// A value is read up to this size.
const MAX_VALUE: usize = 1 << 20;

/// One connection to a redis server.
#[derive(Debug)]
pub struct Redis {
    reader: BufReader<TcpStream>,
}

/// The value that belongs to the key number `n`; no two are alike.
pub fn value_of(n: u64) -> String {
    format!("value-{n}-{:016x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn key_of(n: u64) -> String {
    format!("key:{n}")
}

impl Redis {
    /// Connects; connecting and every answer may take `timeout`.
    ///
    /// # Errors
    /// From the socket.
    pub fn connect(address: SocketAddr, timeout: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// One command; `None` is redis' nil.
    ///
    /// # Errors
    /// From the socket, and redis' own.
    pub fn command(&mut self, words: &[&str]) -> io::Result<Option<String>> {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        self.reader.get_mut().write_all(request.as_bytes())?;
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        let unexpected = || io::Error::other(format!("not an answer of redis: {line:?}"));
        match line.split_at_checked(1).ok_or_else(unexpected)? {
            ("+" | ":", text) => Ok(Some(text.to_owned())),
            ("-", text) => Err(io::Error::other(text.to_owned())),
            ("$", "-1") => Ok(None),
            ("$", length) => {
                let length = length.parse::<usize>().ok().filter(|n| *n <= MAX_VALUE).ok_or_else(unexpected)?;
                let mut bytes = vec![0; length + 2];
                self.reader.read_exact(&mut bytes)?;
                bytes.truncate(length);
                String::from_utf8(bytes).map(Some).map_err(io::Error::other)
            }
            _ => Err(unexpected()),
        }
    }

    /// Writes the key number `n`.
    ///
    /// # Errors
    /// As `command`.
    pub fn write(&mut self, n: u64) -> io::Result<()> {
        self.command(&["SET", &key_of(n), &value_of(n)]).map(drop)
    }

    /// Reads keys 1, 2, … and returns the last one present; all before it have to be there and right.
    ///
    /// # Errors
    /// As `command`, and with the first key that is missing in the middle or has another value.
    pub fn verify(&mut self) -> io::Result<u64> {
        let size: u64 =
            self.command(&["DBSIZE"])?.and_then(|n| n.parse().ok()).ok_or_else(|| io::Error::other("no DBSIZE"))?;
        for n in 1..=size {
            let found = self.command(&["GET", &key_of(n)])?;
            if found.as_deref() != Some(&value_of(n)) {
                return Err(io::Error::other(format!("key {n} of {size} is {found:?}, not {:?}", value_of(n))));
            }
        }
        Ok(size)
    }

    /// The number the server's process drew when it started.
    ///
    /// # Errors
    /// As `command`.
    pub fn run_id(&mut self) -> io::Result<String> {
        let info = self.command(&["INFO", "server"])?.unwrap_or_default();
        let id = info.lines().find_map(|line| line.trim().strip_prefix("run_id:"));
        id.map(str::to_owned).ok_or_else(|| io::Error::other("INFO has no run_id"))
    }
}
