//! A network between a program and a cluster: a port of this machine whose connections lead to the cluster's
//! socket, and which breaks, stands still or changes what passes when told to.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::cluster::Cluster;

/// The faults of the connection.
#[derive(Debug, Default)]
struct Weather {
    /// Whether bytes pass in neither direction, without an error at either end.
    is_still: bool,
    /// Whether no bytes of the server's pass.
    is_deaf: bool,
    /// A message of the client after which the server is no longer heard.
    last_words: Option<Vec<u8>>,
    /// A message of the client, and the one that the server gets instead.
    instead: Option<(Vec<u8>, Vec<u8>)>,
    /// Bytes that have come from clients.
    from_clients: usize,
    open: Vec<TcpStream>,
}

#[derive(Debug, Default)]
struct Shared {
    weather: Mutex<Weather>,
    changed: Condvar,
}

impl Shared {
    fn weather(&self) -> MutexGuard<'_, Weather> {
        self.weather.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something may pass.
    fn wait(&self, is_servers: bool) {
        let stands = |weather: &mut Weather| weather.is_still || (is_servers && weather.is_deaf);
        drop(self.changed.wait_while(self.weather(), stands).unwrap_or_else(PoisonError::into_inner));
    }

    fn change(&self, change: impl FnOnce(&mut Weather)) {
        change(&mut self.weather());
        self.changed.notify_all();
    }
}

/// The network. Its threads end with the process.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    port: u16,
}

impl Proxy {
    /// One in front of a cluster.
    pub fn start(cluster: &Cluster) -> Proxy {
        let socket = cluster.directory().join(".s.PGSQL.5432");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared::default());
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // A client that finds no server is left alone.
                drop(connect(client, &socket, &serving));
            }
        });
        Proxy { shared, port }
    }

    /// The connection string by which a worker finds database `postgres`, as role `remote`.
    pub fn url(&self) -> String {
        format!("host=127.0.0.1 port={} user=remote dbname=postgres sslmode=disable", self.port)
    }

    /// Stops all traffic until [`Proxy::go_on`].
    pub fn stand_still(&self) {
        self.shared.change(|weather| weather.is_still = true);
    }

    /// As soon as a client has said these words, the server hears them, and its answers do not pass any more.
    pub fn keep_answers_to(&self, words: &str) {
        self.shared.change(|weather| weather.last_words = Some(words.as_bytes().to_vec()));
    }

    /// Whether answers are kept.
    pub fn keeps_answers(&self) -> bool {
        self.shared.weather().is_deaf
    }

    /// Everything passes again.
    pub fn go_on(&self) {
        self.shared.change(|weather| (weather.is_still, weather.is_deaf) = (false, false));
    }

    /// Breaks all connections, and with them what has not passed. New ones can be made.
    pub fn cut(&self) {
        self.shared.change(|weather| {
            // Some have gone by themselves.
            weather.open.drain(..).for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
            (weather.is_still, weather.is_deaf) = (false, false);
        });
    }

    /// Has the server get other bytes than clients send, as many of them.
    pub fn replace(&self, sent: &str, received: &str) {
        assert_eq!(sent.len(), received.len(), "messages have their lengths in them");
        let instead = Some((sent.as_bytes().to_vec(), received.as_bytes().to_vec()));
        self.shared.change(|weather| weather.instead = instead);
    }

    /// Bytes that clients have sent up to now.
    pub fn from_clients(&self) -> usize {
        self.shared.weather().from_clients
    }
}

fn connect(client: TcpStream, socket: &PathBuf, shared: &Arc<Shared>) -> std::io::Result<()> {
    let server = UnixStream::connect(socket)?;
    client.set_nodelay(true)?;
    shared.change(|weather| weather.open.extend(client.try_clone()));
    let (mut from, mut to, there) = (client.try_clone()?, server.try_clone()?, Arc::clone(shared));
    std::thread::spawn(move || {
        pass(&mut from, &mut to, &there, false);
        // It is over for both.
        let _ = to.shutdown(Shutdown::Both);
    });
    let (mut from, mut to, back) = (server, client, Arc::clone(shared));
    std::thread::spawn(move || {
        pass(&mut from, &mut to, &back, true);
        let _ = to.shutdown(Shutdown::Both);
    });
    Ok(())
}

fn pass(from: &mut impl Read, to: &mut impl Write, shared: &Shared, is_servers: bool) {
    let mut bytes = vec![0; 1 << 16];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        let bytes = &mut bytes[..count];
        if !is_servers {
            let mut weather = shared.weather();
            weather.from_clients += count;
            let says = |words: &Vec<u8>| bytes.windows(words.len()).any(|part| part == words);
            if weather.last_words.as_ref().is_some_and(says) {
                (weather.last_words, weather.is_deaf) = (None, true);
            }
            if let Some((sent, received)) = &weather.instead {
                let places: Vec<usize> = (0..=count.saturating_sub(sent.len()))
                    .filter(|at| bytes[*at..].starts_with(sent))
                    .collect();
                places.into_iter().for_each(|at| bytes[at..at + sent.len()].copy_from_slice(received));
            }
        }
        shared.wait(is_servers);
        if to.write_all(bytes).is_err() {
            return;
        }
    }
}
