//! The network: streams of bytes between nodes, each chunk on its way for a while. What a broken wire does to TCP is done
//! here: bytes are late, for as long as it lasts, or the connection breaks, and with it what was on the way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures::Stream;
use hyper_util::rt::TokioIo;
use signaldb_model::NodeId;
use signaldb_raft::Dial;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::codegen::Service;
use tonic::codegen::http::Uri;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint};

use crate::lasting::Wire;
use crate::os;
use crate::world::{Event, MILLI, SECOND, State, World, digest_of};

/// Bytes of one direction that nobody has read yet; then the writer waits.
const WINDOW_BYTES: usize = 1 << 20;
/// How long a machine that calls one that is silent waits before it calls again.
const CALL_AGAIN: u64 = SECOND;

#[derive(Debug)]
enum Chunk {
    Bytes(Bytes),
    /// The other end sends nothing more.
    End,
    /// The connection is broken.
    Reset,
}

/// One direction of a connection.
#[derive(Debug, Default)]
struct Pipe {
    /// With the moment when it arrives, unless the wire is held.
    on_the_way: VecDeque<(u64, Chunk)>,
    arrived: VecDeque<Bytes>,
    /// On the way or not read yet.
    bytes: usize,
    /// The writer said so.
    ended: bool,
    end_arrived: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Debug)]
struct Connection {
    caller: u64,
    called: u64,
    accepted: bool,
    /// Of the caller while it waits; `Some(false)` is a refusal.
    answer: Option<bool>,
    waiting: Option<Waker>,
    /// The caller does not wait any more.
    abandoned: bool,
    to_called: Pipe,
    to_caller: Pipe,
    broken: bool,
    /// Ends whose process is gone: the caller's, the called one's.
    dead: [bool; 2],
}

/// All connections and wires.
#[derive(Debug, Default)]
pub(crate) struct Network {
    connections: BTreeMap<u64, Connection>,
    made: u64,
    listeners: BTreeMap<u64, Listener>,
    /// Machines that are switched on; a call to another is not answered at all.
    machines: BTreeSet<u64>,
}

#[derive(Debug, Default)]
struct Listener {
    calls: VecDeque<u64>,
    waiting: Option<Waker>,
}

impl Connection {
    fn pipe(&mut self, to_called: bool) -> &mut Pipe {
        if to_called { &mut self.to_called } else { &mut self.to_caller }
    }

    fn wire(&self, to_called: bool) -> (u64, u64) {
        if to_called { (self.caller, self.called) } else { (self.called, self.caller) }
    }

    /// Whether the process that reads this direction is gone.
    fn is_deaf(&self, to_called: bool) -> bool {
        self.dead[usize::from(to_called)]
    }

    fn wakers(&mut self) -> impl Iterator<Item = Waker> {
        let pipes = [&mut self.to_called, &mut self.to_caller];
        let wakers = pipes.into_iter().flat_map(|pipe| [pipe.reader.take(), pipe.writer.take()]);
        let wakers: Vec<Waker> = wakers.flatten().chain(self.waiting.take()).collect();
        wakers.into_iter()
    }
}

impl State {
    /// How long a chunk is on the way: mostly a fraction of a millisecond, sometimes much longer.
    fn latency(&mut self) -> u64 {
        let usual = self.chance.between(MILLI / 10, MILLI);
        if self.chance.percent(1) { usual + self.chance.below(50 * MILLI) } else { usual }
    }

    fn send(&mut self, connection: u64, to_called: bool, chunk: Chunk) {
        let latency = self.latency();
        let Some(found) = self.network.connections.get_mut(&connection) else { return };
        let wire = found.wire(to_called);
        let pipe = found.pipe(to_called);
        // Bytes do not overtake each other.
        let at = pipe.on_the_way.back().map_or(0, |(at, _)| *at).max(os::now() + latency);
        pipe.on_the_way.push_back((at, chunk));
        if self.lastings.is_held(wire) {
            self.count("chunks held");
        } else {
            self.at(at, Event::Deliver { connection, to_called });
        }
    }

    /// Chunks arrive; returns the node that has something to do now.
    pub(crate) fn deliver(&mut self, connection: u64, to_called: bool) -> Option<u64> {
        let found = self.network.connections.get_mut(&connection)?;
        let (from, to) = found.wire(to_called);
        if self.lastings.is_held((from, to)) {
            return None;
        }
        let deaf = found.is_deaf(to_called);
        let now = os::now();
        let (mut news, mut reset) = (false, false);
        let pipe = found.pipe(to_called);
        while pipe.on_the_way.front().is_some_and(|(at, _)| *at <= now)
            && let Some((_, chunk)) = pipe.on_the_way.pop_front()
        {
            news = true;
            match chunk {
                Chunk::Bytes(bytes) if deaf => pipe.bytes -= bytes.len(),
                Chunk::Bytes(bytes) => pipe.arrived.push_back(bytes),
                Chunk::End => pipe.end_arrived = true,
                Chunk::Reset => reset = true,
            }
        }
        if !news {
            return None;
        }
        let reader = pipe.reader.take();
        found.broken |= reset;
        let others: Vec<Waker> = if reset { found.wakers().collect() } else { Vec::new() };
        if reset {
            self.touched.insert(from);
        }
        self.woken.extend(reader.into_iter().chain(others));
        self.note(format_args!("deliver {connection} {from}>{to}{}", if reset { " reset" } else { "" }));
        // A machine answers what comes to a process that is gone.
        if deaf && !reset && self.network.machines.contains(&to) {
            self.send(connection, !to_called, Chunk::Reset);
        }
        Some(to)
    }

    /// A call to connect comes to the called machine.
    pub(crate) fn call_arrives(&mut self, connection: u64) -> Option<u64> {
        let found = self.network.connections.get(&connection)?;
        let (caller, called) = (found.caller, found.called);
        if found.abandoned || found.dead[0] {
            self.forget(connection);
            return None;
        }
        if self.lastings.is_held((caller, called)) || !self.network.machines.contains(&called) {
            self.after(CALL_AGAIN, Event::Connect { connection });
            return None;
        }
        let accepted = self.network.listeners.contains_key(&called);
        let latency = self.latency();
        self.after(latency, Event::Connected { connection, accepted });
        if !accepted {
            return None;
        }
        self.note(format_args!("call {connection} {caller}>{called}"));
        if let Some(found) = self.network.connections.get_mut(&connection) {
            found.accepted = true;
        }
        let listener = self.network.listeners.get_mut(&called)?;
        listener.calls.push_back(connection);
        let waiting = listener.waiting.take();
        self.woken.extend(waiting);
        Some(called)
    }

    /// The answer comes to the caller.
    pub(crate) fn call_answered(&mut self, connection: u64, accepted: bool) -> Option<u64> {
        let found = self.network.connections.get(&connection)?;
        let (caller, called) = (found.caller, found.called);
        if self.lastings.is_held((called, caller)) {
            self.after(CALL_AGAIN, Event::Connected { connection, accepted });
            return None;
        }
        if found.abandoned {
            self.send(connection, true, Chunk::Reset);
            return None;
        }
        self.note(format_args!("answer {connection} {caller}>{called} {accepted}"));
        let found = self.network.connections.get_mut(&connection)?;
        found.answer = Some(accepted);
        let waiting = found.waiting.take();
        self.woken.extend(waiting);
        Some(caller)
    }

    fn forget(&mut self, connection: u64) {
        if let Some(mut found) = self.network.connections.remove(&connection) {
            self.stale.extend(found.wakers());
        }
    }

    /// An end is dropped by its process.
    fn close(&mut self, connection: u64, called_end: bool) {
        let Some(found) = self.network.connections.get_mut(&connection) else { return };
        let end = usize::from(called_end);
        if found.dead[end] {
            return;
        }
        found.dead[end] = true;
        let other_gone = found.dead[1 - end];
        let ended = std::mem::replace(&mut found.pipe(!called_end).ended, true);
        if other_gone {
            self.forget(connection);
        } else if !ended {
            self.send(connection, !called_end, Chunk::End);
        }
    }

    /// What was held on these wires moves on.
    pub(crate) fn move_on(&mut self, free: &BTreeSet<Wire>) {
        let ids: Vec<u64> = self.network.connections.keys().copied().collect();
        for connection in ids {
            for to_called in [true, false] {
                let Some(found) = self.network.connections.get_mut(&connection) else { continue };
                let is_free = free.contains(&found.wire(to_called));
                if is_free && let Some((at, _)) = found.pipe(to_called).on_the_way.back() {
                    let at = (*at).max(os::now() + MILLI);
                    self.at(at, Event::Deliver { connection, to_called });
                }
            }
        }
    }

    /// All connections between two nodes break, in both directions; what was on the way is lost.
    pub(crate) fn break_wires(&mut self, one: u64, other: u64) -> usize {
        let between = |found: &Connection| {
            (found.caller, found.called) == (one, other) || (found.caller, found.called) == (other, one)
        };
        let mut broken = 0;
        let State { network, woken, .. } = self;
        for found in network.connections.values_mut().filter(|found| between(found) && found.accepted) {
            found.broken = true;
            found.to_called.on_the_way.clear();
            found.to_caller.on_the_way.clear();
            woken.extend(found.wakers());
            broken += 1;
        }
        (0..broken).for_each(|_| self.count("connections broken"));
        broken
    }

    pub(crate) fn switch_on(&mut self, node: u64) {
        self.network.machines.insert(node);
    }

    /// The process of a node is gone. Its machine says so to everybody, unless it is gone too.
    pub(crate) fn process_ends(&mut self, node: u64, machine_too: bool) {
        if let Some(listener) = self.network.listeners.remove(&node) {
            self.stale.extend(listener.waiting);
        }
        if machine_too {
            self.network.machines.remove(&node);
        }
        let mut told = Vec::new();
        let State { network, stale, .. } = self;
        for (id, found) in &mut network.connections {
            for called_end in [false, true] {
                let at = if called_end { found.called } else { found.caller };
                if at == node && !found.dead[usize::from(called_end)] {
                    found.dead[usize::from(called_end)] = true;
                    // It waits for nothing any more.
                    let (read, written) = (called_end, !called_end);
                    stale.extend(found.pipe(read).reader.take());
                    stale.extend(found.pipe(written).writer.take());
                    if !called_end {
                        stale.extend(found.waiting.take());
                    }
                    told.push((*id, !called_end));
                }
            }
        }
        if !machine_too {
            for (connection, to_called) in told {
                self.send(connection, to_called, Chunk::Reset);
            }
        }
        let gone: Vec<u64> = {
            let connections = self.network.connections.iter();
            connections.filter(|(_, found)| found.dead == [true, true]).map(|(id, _)| *id).collect()
        };
        gone.into_iter().for_each(|connection| self.forget(connection));
    }
}

/// The wires of one node, as its calls see them.
#[derive(Debug)]
pub(crate) struct Wires {
    pub(crate) world: World,
    pub(crate) node: u64,
}

impl Dial for Wires {
    fn channel(&self, node: NodeId, endpoint: Endpoint) -> Channel {
        let connector = Connector { world: self.world.clone(), caller: self.node, called: node.0 };
        endpoint.connect_with_connector_lazy(connector)
    }
}

#[derive(Debug, Clone)]
struct Connector {
    world: World,
    caller: u64,
    called: u64,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<SimStream>;
    type Error = io::Error;
    type Future = Connecting;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Connecting {
        let (caller, called) = (self.caller, self.called);
        let connection = self.world.with(|state| {
            state.network.made += 1;
            let connection = state.network.made;
            let new = Connection {
                caller,
                called,
                accepted: false,
                answer: None,
                waiting: None,
                abandoned: false,
                to_called: Pipe::default(),
                to_caller: Pipe::default(),
                broken: false,
                dead: [false, false],
            };
            state.network.connections.insert(connection, new);
            let latency = state.latency();
            state.after(latency, Event::Connect { connection });
            connection
        });
        Connecting { world: self.world.clone(), connection, done: false }
    }
}

/// A call to connect.
pub(crate) struct Connecting {
    world: World,
    connection: u64,
    done: bool,
}

impl Future for Connecting {
    type Output = io::Result<TokioIo<SimStream>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let connection = self.connection;
        let answer = self.world.with(|state| {
            let Some(found) = state.network.connections.get_mut(&connection) else { return Some(false) };
            let answer = if found.broken { Some(false) } else { found.answer };
            if answer.is_none() {
                state.stale.extend(found.waiting.replace(context.waker().clone()));
            }
            answer
        });
        match answer {
            None => Poll::Pending,
            Some(true) => {
                self.done = true;
                let stream = SimStream { world: self.world.clone(), connection, called_end: false };
                Poll::Ready(Ok(TokioIo::new(stream)))
            }
            // As hyper's connector says it: nothing was sent.
            Some(false) => {
                Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionRefused, "tcp connect error: simulated")))
            }
        }
    }
}

impl Drop for Connecting {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let connection = self.connection;
        self.world.with(|state| {
            let Some(found) = state.network.connections.get_mut(&connection) else { return };
            found.abandoned = true;
            state.stale.extend(found.waiting.take());
            state.close(connection, false);
        });
    }
}

/// What a node listens to. Gone with its process.
pub(crate) struct Incoming {
    world: World,
    node: u64,
}

impl Incoming {
    pub(crate) fn listen(world: World, node: u64) -> Self {
        world.with(|state| state.network.listeners.insert(node, Listener::default()));
        Self { world, node }
    }
}

impl Stream for Incoming {
    type Item = io::Result<SimStream>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let call = self.world.with(|state| {
            let listener = state.network.listeners.get_mut(&self.node)?;
            let call = listener.calls.pop_front();
            if call.is_none() {
                state.stale.extend(listener.waiting.replace(context.waker().clone()));
            }
            Some(call)
        });
        match call {
            None => Poll::Ready(None),
            Some(None) => Poll::Pending,
            Some(Some(connection)) => {
                Poll::Ready(Some(Ok(SimStream { world: self.world.clone(), connection, called_end: true })))
            }
        }
    }
}

/// One end of a connection.
pub(crate) struct SimStream {
    world: World,
    connection: u64,
    called_end: bool,
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "simulated")
}

impl AsyncRead for SimStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (connection, called_end) = (self.connection, self.called_end);
        self.world.with(|state| {
            let State { network, stale, woken, touched, .. } = state;
            let Some(found) = network.connections.get_mut(&connection) else { return Poll::Ready(Err(broken())) };
            if found.broken {
                return Poll::Ready(Err(broken()));
            }
            let (writer, _) = found.wire(called_end);
            let pipe = found.pipe(called_end);
            let Some(front) = pipe.arrived.front_mut() else {
                if pipe.end_arrived {
                    return Poll::Ready(Ok(()));
                }
                stale.extend(pipe.reader.replace(context.waker().clone()));
                return Poll::Pending;
            };
            let taken = front.split_to(front.len().min(buffer.remaining()));
            if front.is_empty() {
                pipe.arrived.pop_front();
            }
            buffer.put_slice(&taken);
            pipe.bytes -= taken.len();
            if let Some(waiting) = pipe.writer.take() {
                woken.push(waiting);
                touched.insert(writer);
            }
            Poll::Ready(Ok(()))
        })
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let (connection, called_end) = (self.connection, self.called_end);
        self.world.with(|state| {
            let State { network, stale, .. } = state;
            let Some(found) = network.connections.get_mut(&connection) else { return Poll::Ready(Err(broken())) };
            if found.broken {
                return Poll::Ready(Err(broken()));
            }
            let (from, to) = found.wire(!called_end);
            let pipe = found.pipe(!called_end);
            if pipe.ended {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let taken = bytes.len().min(WINDOW_BYTES.saturating_sub(pipe.bytes));
            if taken == 0 && !bytes.is_empty() {
                stale.extend(pipe.writer.replace(context.waker().clone()));
                return Poll::Pending;
            }
            pipe.bytes += taken;
            let sent = Bytes::copy_from_slice(&bytes[..taken]);
            state.note(format_args!("send {connection} {from}>{to} {taken} {:016x}", digest_of(&sent)));
            state.send(connection, !called_end, Chunk::Bytes(sent));
            Poll::Ready(Ok(taken))
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (connection, called_end) = (self.connection, self.called_end);
        self.world.with(|state| {
            let Some(found) = state.network.connections.get_mut(&connection) else { return };
            if !std::mem::replace(&mut found.pipe(!called_end).ended, true) {
                state.send(connection, !called_end, Chunk::End);
            }
        });
        Poll::Ready(Ok(()))
    }
}

impl Connected for SimStream {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl Drop for SimStream {
    fn drop(&mut self) {
        let (connection, called_end) = (self.connection, self.called_end);
        self.world.with(|state| state.close(connection, called_end));
    }
}
