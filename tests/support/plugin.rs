//! A volume driver as docker's plugins have it, that can go away or stop answering.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::{Value, json};

use super::Engine;

/// A driver named `fake`, for one volume of any name, in a folder of the engine's.
#[derive(Debug)]
pub struct VolumePlugin {
    socket: PathBuf,
    hangs: Arc<AtomicBool>,
}

impl VolumePlugin {
    /// Starts it beside an engine of [`Engine::with_plugins`], and makes its volume.
    pub fn start(engine: &Engine, volume: &str) -> VolumePlugin {
        let socket = engine.folder().join("plugins/fake.sock");
        let mountpoint = engine.folder().join("fake");
        fs::create_dir_all(&mountpoint).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        let hangs = Arc::new(AtomicBool::new(false));
        let plugin = VolumePlugin { socket, hangs: hangs.clone() };
        let volume_of = json!({"Name": volume, "Mountpoint": mountpoint});
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (volume, hangs) = (volume_of.clone(), hangs.clone());
                thread::spawn(move || while answer(&stream, &volume, &hangs).is_some() {});
            }
        });
        engine.docker(&["volume", "create", "--driver", "fake", volume]);
        plugin
    }

    /// Lets it take every question and answer none.
    pub fn hang(&self) {
        self.hangs.store(true, Ordering::Relaxed);
    }
}

impl Drop for VolumePlugin {
    /// Takes it away from the engine: a question in its ear is never answered.
    fn drop(&mut self) {
        self.hang();
        fs::remove_file(&self.socket).unwrap();
    }
}

/// Answers one request.
fn answer(mut stream: &UnixStream, volume: &Value, hangs: &AtomicBool) -> Option<()> {
    let mut request = BufReader::new(stream);
    let mut line = String::new();
    request.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut length = 0;
    loop {
        line.clear();
        request.read_line(&mut line).ok()?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.parse().ok()?,
            Some(_) => {}
            None => break,
        }
    }
    request.read_exact(&mut vec![0; length]).ok()?;
    while hangs.load(Ordering::Relaxed) {
        thread::sleep(std::time::Duration::from_millis(100));
    }
    let answer = match path.as_str() {
        "/Plugin.Activate" => json!({"Implements": ["VolumeDriver"]}),
        "/VolumeDriver.List" => json!({"Volumes": [volume], "Err": ""}),
        "/VolumeDriver.Get" => json!({"Volume": volume, "Err": ""}),
        "/VolumeDriver.Capabilities" => json!({"Capabilities": {"Scope": "local"}}),
        "/VolumeDriver.Mount" | "/VolumeDriver.Path" => json!({"Mountpoint": volume["Mountpoint"], "Err": ""}),
        _ => json!({"Err": ""}),
    };
    let answer = answer.to_string();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", answer.len());
    stream.write_all((head + &answer).as_bytes()).ok()
}
