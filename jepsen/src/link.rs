//! Directed links between nodes, and user-space relays that pass, hold, delay or cut what one node sends to another. Where
//! nodes have a network of their own, [`crate::namespace`] does the same to its packets.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What happens to bytes on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Pass,
    /// Bytes wait until the link passes again, as TCP would resend them; packets are lost, and TCP does resend them.
    Hold,
    /// Packets share a narrow cable, in which they wait so long at most.
    Delay(Duration),
    /// Connections are cut, and refused.
    Reset,
}

/// One direction between two nodes.
#[derive(Debug, Clone)]
struct Link {
    mode: watch::Sender<Mode>,
    /// Chunks that met anything but [`Mode::Pass`].
    disturbed: Arc<AtomicU64>,
}

/// All directions between all nodes, by (from, to).
#[derive(Debug, Clone, Default)]
pub(crate) struct Links(Arc<Mutex<BTreeMap<(usize, usize), Link>>>);

impl Links {
    fn link(&self, from: usize, to: usize) -> Link {
        let mut links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || Link { mode: watch::channel(Mode::Pass).0, disturbed: Arc::default() };
        links.entry((from, to)).or_insert_with(fresh).clone()
    }

    pub(crate) fn set(&self, from: usize, to: usize, mode: Mode) {
        self.link(from, to).mode.send_replace(mode);
    }

    pub(crate) fn heal(&self) {
        let links: Vec<Link> = self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        for link in links {
            link.mode.send_replace(Mode::Pass);
        }
    }

    /// Chunks that were held, delayed or cut so far.
    pub(crate) fn disturbed(&self) -> u64 {
        let links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        links.values().map(|link| link.disturbed.load(Ordering::Relaxed)).sum()
    }

    /// Serves connections that node `from` makes to node `to` at `target`.
    pub(crate) async fn relay(&self, from: usize, to: usize, target: SocketAddr) -> anyhow::Result<Relay> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("bind a relay")?;
        let address = listener.local_addr()?;
        let (there, back) = (self.link(from, to), self.link(to, from));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, target, there, back));
        Ok(Relay { address, _tasks: tasks })
    }
}

/// A running relay. Dropping it cuts its connections.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    _tasks: JoinSet<()>,
}

async fn accept(listener: TcpListener, target: SocketAddr, there: Link, back: Link) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((inbound, _)) = accepted else { continue };
                if *there.mode.borrow() == Mode::Reset {
                    there.disturbed.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                connections.spawn(connect(inbound, target, there.clone(), back.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connect(inbound: TcpStream, target: SocketAddr, there: Link, back: Link) {
    let Ok(outbound) = TcpStream::connect(target).await else { return };
    for stream in [&inbound, &outbound] {
        // Only latency is lost without it.
        let _ = stream.set_nodelay(true);
    }
    let (read_in, write_in) = inbound.into_split();
    let (read_out, write_out) = outbound.into_split();
    tokio::select! {
        () = pump(read_in, write_out, there) => {}
        () = pump(read_out, write_in, back) => {}
    }
}

/// Copies one direction; ends, and with it the connection, when either side closes or the link resets.
async fn pump(mut from: tokio::net::tcp::OwnedReadHalf, mut to: tokio::net::tcp::OwnedWriteHalf, link: Link) {
    let mut buffer = vec![0; 64 << 10];
    let mut mode = link.mode.subscribe();
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            reset = mode.wait_for(|mode| *mode == Mode::Reset) => {
                drop(reset);
                return;
            }
        };
        let Ok(bytes @ 1..) = read else { return };
        let now = *mode.borrow_and_update();
        if now != Mode::Pass {
            link.disturbed.fetch_add(1, Ordering::Relaxed);
        }
        match now {
            Mode::Pass => {}
            Mode::Delay(delay) => tokio::time::sleep(delay).await,
            Mode::Reset => return,
            Mode::Hold => match mode.wait_for(|mode| *mode != Mode::Hold).await {
                Ok(released) if *released != Mode::Reset => {}
                _ => return,
            },
        }
        if to.write_all(&buffer[..bytes]).await.is_err() {
            return;
        }
    }
}
