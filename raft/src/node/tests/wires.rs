//! The network between nodes of one process: for each direction a TCP relay that can be cut, held or rationed.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Bytes that a relay reads at once.
const READ_BYTES: usize = 64 << 10;

/// What happens to the connections that one node opens to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Open,
    /// All break, none is made.
    Cut,
    /// Requests arrive, answers stay on the way, even when the node that gave them dies.
    HoldAnswers,
    /// Answers that were held arrive; no connection is made.
    LastAnswers,
}

/// The connections from one node to another.
#[derive(Debug)]
pub(super) struct Wire(watch::Sender<State>);

#[derive(Debug, Clone, Copy)]
struct State {
    flow: Flow,
    /// Counts what breaks every connection.
    cuts: u64,
    /// Where the called node listens, while it runs.
    called: Option<SocketAddr>,
    /// Counts its starts and ends.
    lives: u64,
    /// Bytes of requests that still pass before the wire is cut.
    ration: Option<usize>,
}

impl State {
    fn cut(&mut self) {
        (self.flow, self.ration) = (Flow::Cut, None);
        self.cuts += 1;
    }
}

impl Wire {
    pub(super) fn new(flow: Flow, called: Option<SocketAddr>) -> Self {
        Self(watch::Sender::new(State { flow, cuts: 0, called, lives: 0, ration: None }))
    }

    pub(super) fn flow(&self) -> Flow {
        self.0.borrow().flow
    }

    pub(super) fn set(&self, flow: Flow) {
        self.0.send_modify(|state| match flow {
            Flow::Cut => state.cut(),
            _ => (state.flow, state.ration) = (flow, None),
        });
    }

    /// Opens the wire until `bytes` of requests have passed; then it is cut.
    pub(super) fn ration(&self, bytes: usize) {
        self.0.send_modify(|state| (state.flow, state.ration) = (Flow::Open, Some(bytes)));
    }

    /// The called node listens there now; `None` when it died.
    pub(super) fn reach(&self, called: Option<SocketAddr>) {
        self.0.send_modify(|state| {
            state.called = called;
            state.lives += 1;
        });
    }

    fn passed(&self, bytes: usize) {
        self.0.send_if_modified(|state| {
            let Some(left) = &mut state.ration else { return false };
            *left = left.saturating_sub(bytes);
            let used_up = *left == 0;
            if used_up {
                state.cut();
            }
            used_up
        });
    }

    /// Takes connections at `listener` until it is dropped.
    pub(super) async fn relay(self: Arc<Self>, listener: TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => if let Ok((caller, _)) = accepted {
                    connections.spawn(Arc::clone(&self).carry(caller));
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }

    async fn carry(self: Arc<Self>, caller: TcpStream) {
        let begun = *self.0.borrow();
        let (Some(called), Flow::Open | Flow::HoldAnswers) = (begun.called, begun.flow) else { return };
        let Ok(called) = TcpStream::connect(called).await else { return };
        for stream in [&caller, &called] {
            // A stream that is closed already is found to be so by the next read.
            let _ = stream.set_nodelay(true);
        }
        let ((from_caller, to_caller), (from_called, to_called)) = (caller.into_split(), called.into_split());
        let requests = self.pump(from_caller, to_called, begun.lives, false);
        let answers = self.pump(from_called, to_caller, begun.lives, true);
        tokio::select! {
            biased;
            () = self.is_cut(begun.cuts) => {}
            _ = futures::future::join(requests, answers) => {}
        }
    }

    async fn is_cut(&self, cuts: u64) {
        let mut state = self.0.subscribe();
        while state.borrow_and_update().cuts == cuts {
            if state.changed().await.is_err() {
                return;
            }
        }
    }

    /// Copies one direction until it ends. When the called node dies no further byte of it is read, and what was read
    /// of its answers still arrives, at once or when answers are not held any more.
    async fn pump(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, lives: u64, answers: bool) {
        let mut state = self.0.subscribe();
        let (mut kept, mut ended) = (Vec::new(), false);
        loop {
            let now = *state.borrow_and_update();
            ended |= now.lives != lives;
            if ended && !answers {
                return;
            }
            if !answers || now.flow != Flow::HoldAnswers {
                if to.write_all(&kept).await.is_err() || ended {
                    return;
                }
                if !answers {
                    self.passed(kept.len());
                }
                kept.clear();
            }
            kept.reserve(READ_BYTES);
            tokio::select! {
                biased;
                changed = state.changed() => if changed.is_err() { return },
                read = from.read_buf(&mut kept), if !ended => ended = !matches!(read, Ok(1..)),
            }
        }
    }
}
