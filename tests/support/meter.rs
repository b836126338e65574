//! A proxy on loopback that counts what comes in from the network.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// A proxy for HTTP and HTTPS. It passes everything on, to the machine's own proxy if that has one, and serves as long as
/// the test process lives.
#[derive(Debug)]
pub struct Meter {
    /// `http://127.0.0.1:PORT`.
    pub address: String,
    received: Arc<AtomicU64>,
}

impl Meter {
    pub fn start() -> Meter {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let received = Arc::new(AtomicU64::new(0));
        let counter = received.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let counter = counter.clone();
                // A client that goes away in the middle is its own affair.
                thread::spawn(move || relay(client, &counter));
            }
        });
        Meter { address, received }
    }

    /// Returns the bytes that servers have sent since this was last asked.
    pub fn taken(&self) -> u64 {
        self.received.swap(0, Ordering::SeqCst)
    }
}

fn relay(client: TcpStream, received: &AtomicU64) -> Option<()> {
    let mut reader = BufReader::new(client.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?, words.next()?);
    let is_tunnel = method == "CONNECT";
    let host = target.trim_start_matches("http://").split('/').next()?;
    let host = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let next = std::env::var("http_proxy").ok().filter(|_| !host.starts_with("127.0.0.1:"));
    let mut server = TcpStream::connect(match &next {
        Some(proxy) => proxy.trim_start_matches("http://").trim_end_matches('/'),
        None => &host,
    });
    let server = server.as_mut().ok()?;
    if is_tunnel && next.is_none() {
        let mut header = String::new();
        while reader.read_line(&mut header).ok()? > 2 {
            header.clear();
        }
        (&client).write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").ok()?;
    } else {
        // Servers take the whole address in a request as well (RFC 9112, 3.2.2).
        server.write_all(line.as_bytes()).ok()?;
    }
    thread::scope(|scope| {
        scope.spawn(|| {
            let _ = std::io::copy(&mut reader, &mut &*server);
            let _ = server.shutdown(Shutdown::Write);
        });
        let mut buffer = [0; 65536];
        while let Ok(length @ 1..) = (&*server).read(&mut buffer) {
            received.fetch_add(length as u64, Ordering::SeqCst);
            if (&client).write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = client.shutdown(Shutdown::Both);
    });
    Some(())
}
