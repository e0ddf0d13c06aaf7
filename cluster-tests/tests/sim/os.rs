//! The operating system of a simulation: what time it is, what is random, and that waiting takes no time.
//!
//! Everything in a process asks the C library for these three, be it std, tokio, rand or uuid. So they are answered there:
//! this program defines the functions itself, and for the thread of a simulation they tell simulated time and numbers of
//! its seed. All other threads get the system's answers.
//!
//! There is one true time, in which the simulation goes on. While a node runs, the clocks are those of its machine: they
//! drift, and the one on the wall jumps.

#![expect(unsafe_code, reason = "functions of the C library are defined here; each says why it is sound")]

use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_uint, c_void};
use std::task::{Poll, Waker};
use std::time::Duration;

use tokio::runtime::Runtime;

/// 2026-11-01T00:00:00Z in seconds, at moment 0 of the monotonic clock.
const WALL_SECONDS: u64 = 1_793_491_200;
/// Where the monotonic clock begins: code may ask for moments before the first.
const BEGIN_NANOS: u64 = 1_000_000_000_000;
/// What it takes a busy runtime to look for events. Without it a loop that waits for time to pass would never end.
const LOOK_NANOS: u64 = 1_000;
/// Looks after which a runtime is taken for one that never becomes idle: a simulated second of nothing but looks.
const LOOKS_MAX: u64 = 1_000_000;

/// The clocks of a machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clocks {
    /// What the monotonic clock showed at a moment of true time, from which it went on
    shown: u64,
    since: u64,
    /// faster than true time by so many millionths, or slower.
    drift: i64,
    /// The wall clock is ahead by so many nanoseconds, or behind.
    wall: i64,
}

impl Clocks {
    const TRUE: Self = Self { shown: BEGIN_NANOS, since: BEGIN_NANOS, drift: 0, wall: 0 };

    /// From [`begin`] on, right but for the wall clock.
    pub(crate) fn ahead(wall: i64) -> Self {
        Self { wall, ..Self::TRUE }
    }

    fn rate(self) -> u128 {
        1_000_000_u128.saturating_add_signed(self.drift.into())
    }

    fn monotonic(self, now: u64) -> u64 {
        let passed = u128::from(now.saturating_sub(self.since)) * self.rate() / 1_000_000;
        self.shown + u64::try_from(passed).unwrap_or(u64::MAX / 2)
    }

    /// The first moment of true time at which the monotonic clock shows `shown`.
    fn moment_of(self, shown: u64) -> u64 {
        let passed = (u128::from(shown.saturating_sub(self.shown)) * 1_000_000).div_ceil(self.rate().max(1));
        self.since + u64::try_from(passed).unwrap_or(u64::MAX / 2)
    }

    fn wall(self, now: u64) -> u64 {
        (WALL_SECONDS * 1_000_000_000 + self.monotonic(now)).saturating_add_signed(self.wall)
    }

    /// From now on they are faster or slower.
    pub(crate) fn set_drift(&mut self, millionths: i64) {
        let now = now();
        *self = Self { shown: self.monotonic(now), since: now, drift: millionths, ..*self };
    }

    /// Somebody sets the wall clock, to so much ahead of the true time.
    pub(crate) fn set_wall(&mut self, ahead: i64) {
        self.wall = ahead;
    }
}

// Constants without destructors: the first look at them allocates nothing, whoever asks for the time.
thread_local! {
    static SIMULATED: Cell<bool> = const { Cell::new(false) };
    static NOW: Cell<u64> = const { Cell::new(0) };
    static RANDOM: Cell<u64> = const { Cell::new(0) };
    /// Those of the node that runs.
    static CLOCKS: Cell<Clocks> = const { Cell::new(Clocks::TRUE) };
    /// How often the runtime that runs looked for events and went on.
    static LOOKS: Cell<u64> = const { Cell::new(0) };
    /// When the runtime that became idle wants to go on.
    static DEADLINE: Cell<Option<u64>> = const { Cell::new(None) };
    /// Whoever waits until the runtime of this thread is idle.
    static IDLE: RefCell<Option<Waker>> = const { RefCell::new(None) };
}

/// From now on this thread lives in simulated time, with numbers of `seed`.
pub(crate) fn begin(seed: u64) {
    NOW.set(BEGIN_NANOS);
    RANDOM.set(seed);
    SIMULATED.set(true);
}

/// Simulated time, nanoseconds.
pub(crate) fn now() -> u64 {
    NOW.get()
}

/// Simulated time since the begin.
pub(crate) fn elapsed() -> Duration {
    Duration::from_nanos(NOW.get().saturating_sub(BEGIN_NANOS))
}

/// Time passes; it never goes back.
pub(crate) fn advance_to(nanos: u64) {
    NOW.set(NOW.get().max(nanos));
}

/// Does something as a machine with these clocks does it.
pub(crate) fn with_clocks<T>(clocks: Clocks, act: impl FnOnce() -> T) -> T {
    let before = CLOCKS.replace(clocks);
    let result = act();
    CLOCKS.set(before);
    result
}

/// A runtime that goes on and on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NeverIdle;

/// Runs all that can run on `runtime` at this moment; returns when, in true time, it wants to go on by itself.
///
/// # Errors
/// It never becomes idle.
pub(crate) fn run_until_idle(runtime: &Runtime, clocks: Clocks) -> Result<Option<u64>, NeverIdle> {
    LOOKS.set(0);
    let mut begun = false;
    with_clocks(clocks, || {
        runtime.block_on(std::future::poll_fn(|context| {
            if begun && IDLE.with_borrow(Option::is_none) {
                return Poll::Ready(());
            }
            begun = true;
            IDLE.set(Some(context.waker().clone()));
            Poll::Pending
        }));
    });
    if LOOKS.get() > LOOKS_MAX { Err(NeverIdle) } else { Ok(DEADLINE.get()) }
}

/// The next number of a sequence (splitmix64).
pub(crate) fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// As in `man 2 clock_gettime`.
// SAFETY of the definition: name and signature are those of the C library, and the contract is kept.
#[unsafe(no_mangle)]
extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> c_int {
    let (clocks, now) = (CLOCKS.get(), NOW.get());
    let nanos = match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => Some(clocks.wall(now)),
        libc::CLOCK_MONOTONIC | libc::CLOCK_MONOTONIC_COARSE | libc::CLOCK_MONOTONIC_RAW | libc::CLOCK_BOOTTIME => {
            Some(clocks.monotonic(now))
        }
        // Time of the processor.
        _ => None,
    };
    let Some(nanos) = nanos.filter(|_| SIMULATED.get()) else {
        // SAFETY: the arguments are those of the caller, for the same call of the kernel.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) } as c_int;
    };
    let told = libc::timespec {
        tv_sec: (nanos / 1_000_000_000) as libc::time_t,
        tv_nsec: (nanos % 1_000_000_000) as libc::c_long,
    };
    // SAFETY: the caller gives a place for the answer.
    unsafe { time.write(told) };
    0
}

/// As in `man 2 getrandom`.
// SAFETY of the definition: name and signature are those of the C library, and the contract is kept.
#[unsafe(no_mangle)]
extern "C" fn getrandom(buffer: *mut c_void, len: libc::size_t, flags: c_uint) -> libc::ssize_t {
    if !SIMULATED.get() {
        // SAFETY: the arguments are those of the caller, for the same call of the kernel.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, len, flags) } as libc::ssize_t;
    }
    let mut state = RANDOM.get();
    for at in 0..len {
        // SAFETY: the caller gives a place for `len` bytes.
        unsafe { buffer.cast::<u8>().add(at).write(next_random(&mut state) as u8) };
    }
    RANDOM.set(state);
    len as libc::ssize_t
}

/// As in `man 2 epoll_wait`. A thread of a simulation does not wait: whoever runs its runtime is told that it is idle.
// SAFETY of the definition: name and signature are those of the C library, and the contract is kept.
#[unsafe(no_mangle)]
extern "C" fn epoll_wait(epoll: c_int, events: *mut libc::epoll_event, count: c_int, timeout: c_int) -> c_int {
    let simulated = SIMULATED.get();
    let wait = if simulated { 0 } else { timeout };
    // SAFETY: the arguments are those of the caller, for a call that does the same without a mask of signals.
    let ready = unsafe { libc::epoll_pwait(epoll, events, count, wait, std::ptr::null()) };
    if !simulated || ready != 0 {
        return ready;
    }
    if timeout == 0 {
        NOW.set(NOW.get() + LOOK_NANOS);
        LOOKS.set(LOOKS.get() + 1);
        if LOOKS.get() <= LOOKS_MAX {
            return 0;
        }
        // It is given up: as if it were idle.
    }
    // A negative timeout is for ever.
    let wait = u64::try_from(timeout).ok();
    let clocks = CLOCKS.get();
    DEADLINE.set(wait.map(|millis| clocks.moment_of(clocks.monotonic(NOW.get()) + millis * 1_000_000)));
    if let Some(waker) = IDLE.take() {
        waker.wake();
    }
    0
}
