//! One simulation as a process: what it prints, and what whoever started it makes of that.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::arguments::One;
use crate::run::{Plan, Report, run};

/// True time after which a simulation hangs. What goes round in circles is found by its steps, however slow the machine
/// is; this is for what does not come as far as another step.
const WATCHDOG: Duration = Duration::from_secs(15 * 60);
/// Futures are deep without optimization.
const STACK_BYTES: usize = 64 << 20;
/// Lines of a failed simulation that are shown.
const LINES_SHOWN: usize = 60;
/// The end of what a simulation prints that is kept.
const OUTPUT_BYTES_MAX: usize = 256 << 10;
/// Lines of a trace that are read ahead of the other one.
const LINES_AHEAD: usize = 256;
/// Events before the first difference of two traces that are shown.
const EVENTS_SHOWN: usize = 8;

static PANICKED: AtomicBool = AtomicBool::new(false);

// --- inside

/// Runs one simulation in this process; whether all promises were kept.
pub(crate) fn simulate(one: One) -> bool {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICKED.store(true, Ordering::Relaxed);
        usual(info);
    }));
    if !one.child {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).without_time().with_ansi(false).init();
    }
    let plan = Plan { seed: one.seed, seconds: one.seconds, print: one.trace };
    // A new thread: whatever this one keeps for itself, like the keys of its maps, begins there.
    let simulation = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
        let report = run(plan, &|| PANICKED.load(Ordering::Relaxed));
        (report, std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count))
    });
    let Ok(Ok((mut report, threads))) = simulation.map(std::thread::JoinHandle::join) else {
        println!("result seed={} FAILED", one.seed);
        println!("violation the simulation panicked");
        return false;
    };
    // What another thread does is in no order.
    if threads != 2 && report.violation.is_none() {
        report.violation = Some(format!("{} threads were started", threads.saturating_sub(2)));
    }
    print(one.seed, &report);
    report.violation.is_none()
}

fn print(seed: u64, report: &Report) {
    for (name, counts) in [("faults", &report.faults), ("counts", &report.counts)] {
        let counts: Vec<String> = counts.iter().map(|(what, count)| format!("{what}: {count}")).collect();
        println!("{name} {}", counts.join(", "));
    }
    println!(
        "result seed={seed} digest={:016x} events={} steps={} acknowledged={} attempted={} simulated={:.1} {}",
        report.digest,
        report.events,
        report.steps,
        report.acknowledged,
        report.attempted,
        report.elapsed.as_secs_f64(),
        report.violation.as_ref().map_or("ok", |_| "FAILED"),
    );
    if let Some(violation) = &report.violation {
        println!("violation {violation}");
    }
}

// --- outside

/// A simulation that a process of its own ran.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) passed: bool,
    /// True time.
    pub(crate) took: Duration,
    output: String,
}

/// How whoever wants to see a simulation asks for it.
pub(crate) fn command_line(seed: u64, seconds: u64) -> String {
    format!("make sim SEED={seed} SECONDS={seconds}")
}

fn command(seed: u64, seconds: u64) -> std::io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--child", "--seed", &seed.to_string(), "--seconds", &seconds.to_string()]);
    command.stdin(Stdio::null());
    Ok(command)
}

impl Outcome {
    pub(crate) fn of(seed: u64, seconds: u64) -> Self {
        let begun = Instant::now();
        let (passed, output) = Self::run(seed, seconds).unwrap_or_else(|error| (false, error.to_string()));
        Self { passed, took: begun.elapsed(), output }
    }

    fn run(seed: u64, seconds: u64) -> std::io::Result<(bool, String)> {
        let mut child = command(seed, seconds)?.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        // Both are read while it runs: a pipe that is full would stop it.
        std::thread::scope(|scope| {
            let (errors, lines) = (scope.spawn(move || read_end(err)), scope.spawn(move || read_end(out)));
            let until = Instant::now() + WATCHDOG;
            let (passed, end) = loop {
                match child.try_wait()? {
                    Some(status) => break (status.success(), status.to_string()),
                    None if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
                    None => {
                        child.kill()?;
                        child.wait()?;
                        break (false, format!("violation seed {seed} did not end in {WATCHDOG:?} of true time"));
                    }
                }
            };
            let (errors, lines) = (errors.join().unwrap_or_default(), lines.join().unwrap_or_default());
            Ok((passed, format!("{errors}{lines}{end}\n")))
        })
    }

    /// A field of the line with the result; empty without one.
    pub(crate) fn field(&self, name: &str) -> &str {
        let fields = self.line("result").split(' ').filter_map(|field| field.split_once('='));
        fields.filter(|(found, _)| *found == name).map(|(_, value)| value).next().unwrap_or_default()
    }

    /// The same as a number.
    pub(crate) fn number(&self, name: &str) -> u64 {
        self.field(name).parse().unwrap_or(0)
    }

    /// `faults` or `counts`.
    pub(crate) fn counts(&self, name: &str) -> BTreeMap<String, u64> {
        let counts = self.line(name).split(", ").filter_map(|count| count.rsplit_once(": "));
        counts.filter_map(|(what, count)| Some((what.to_owned(), count.parse().ok()?))).collect()
    }

    /// What was wrong, in a line.
    pub(crate) fn violation(&self) -> &str {
        match self.line("violation") {
            "" => "its process died",
            found => found,
        }
    }

    fn line(&self, name: &str) -> &str {
        let named = |line: &'_ str| line.split_once(' ').is_some_and(|(found, _)| found == name);
        let line = self.output.lines().rev().find(|line| named(line));
        line.and_then(|line| line.split_once(' ')).map_or("", |(_, rest)| rest)
    }

    /// The end of what it printed, for whoever looks at the failure.
    pub(crate) fn show(&self) {
        let lines: Vec<&str> = self.output.lines().collect();
        // Nobody may be there to read it.
        let _ = writeln!(std::io::stdout(), "{}", lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n"));
    }
}

/// The last that comes out of a pipe, as far as it can be read.
fn read_end(pipe: Option<impl Read>) -> String {
    let (mut text, mut piece) = (Vec::new(), [0; 8192]);
    let Some(mut pipe) = pipe else { return String::new() };
    // What was read until a failure is shown.
    while let Ok(read @ 1..) = pipe.read(&mut piece) {
        text.extend_from_slice(&piece[..read]);
        if text.len() > 2 * OUTPUT_BYTES_MAX {
            text.drain(..text.len() - OUTPUT_BYTES_MAX);
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Runs a seed twice more, side by side, and shows the first event that differs.
pub(crate) fn show_first_difference(seed: u64, seconds: u64) {
    let shown = first_difference(seed, seconds).unwrap_or_else(|error| format!("its traces cannot be read: {error}"));
    println!("{shown}");
}

fn first_difference(seed: u64, seconds: u64) -> std::io::Result<String> {
    let (mut children, mut traces) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let mut child = command(seed, seconds)?.arg("--trace").stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let (sender, lines) = mpsc::sync_channel(LINES_AHEAD);
        let out = child.stdout.take();
        // It ends when nobody wants more, or with the process.
        std::thread::spawn(move || {
            let lines = out.map(|out| BufReader::new(out).lines()).into_iter().flatten();
            lines.map_while(Result::ok).all(|line| sender.send(line).is_ok())
        });
        children.push(child);
        traces.push(lines);
    }
    let (mut before, mut number) = (Vec::new(), 0_u64);
    let difference = loop {
        number += 1;
        let next: Vec<_> = traces.iter().map(|trace| trace.recv_timeout(WATCHDOG).ok()).collect();
        match &next[..] {
            [Some(one), Some(other)] if one == other => {
                before.push(one.clone());
                before.drain(..before.len().saturating_sub(EVENTS_SHOWN));
            }
            [None, None] => break "two more runs of it had the same events: run it again".to_owned(),
            differing => {
                let shown = |line: &Option<String>| line.clone().unwrap_or_else(|| "(the end)".to_owned());
                let lines: Vec<String> = differing.iter().map(shown).collect();
                break format!(
                    "event {number} differs, after\n{}\none:   {}",
                    before.join("\n"),
                    lines.join("\nother: ")
                );
            }
        }
    };
    for child in &mut children {
        // It may have ended.
        let _ = child.kill();
        child.wait()?;
    }
    Ok(difference)
}
