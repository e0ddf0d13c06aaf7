//! Deterministic simulation of a cluster (docs/adr/0016-simulation.md).
//!
//! Three nodes run on one thread: the server's own log, groups, recovery gate, peer port, memtables and flushes, on
//! simulated disks, network, clock, catalog and object store, while a schedule of faults goes on. All of it follows from a
//! seed: whoever runs a seed again sees the same events. Each seed is a process of its own, for a process has more memory
//! than its authors think.
//!
//! ```text
//! make sim SEEDS=200            seeds 1 to 200
//! make sim SEED=1234            one, with every event printed
//! make sim SEEDS=5000 FROM=1000 SECONDS=60
//! ```

#[cfg(target_os = "linux")]
mod disk;
#[cfg(target_os = "linux")]
mod ledger;
#[cfg(target_os = "linux")]
mod net;
#[cfg(target_os = "linux")]
mod node;
#[cfg(target_os = "linux")]
mod os;
#[cfg(target_os = "linux")]
mod run;
#[cfg(target_os = "linux")]
mod tables;
#[cfg(target_os = "linux")]
mod work;
#[cfg(target_os = "linux")]
mod world;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    drive::main()
}

/// The functions of the C library that are simulated are those of Linux.
#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
mod drive {
    use std::io::{Read, Write};
    use std::process::{Command, ExitCode, Stdio};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::time::{Duration, Instant};

    use crate::run::{Plan, run};

    /// Seeds of a run of all tests.
    const SEEDS: u64 = 10;
    /// How long things go wrong, simulated seconds.
    const SECONDS: u64 = 12;
    /// A simulation that takes longer than this, in true time, hangs.
    const TIMEOUT: Duration = Duration::from_secs(180);
    /// Futures are deep without optimization.
    const STACK_BYTES: usize = 64 << 20;
    /// Lines of a failed simulation that are shown.
    const LINES_SHOWN: usize = 60;

    static PANICKED: AtomicBool = AtomicBool::new(false);

    #[derive(Debug, Default)]
    struct Arguments {
        seed: Option<u64>,
        seeds: Option<u64>,
        from: Option<u64>,
        seconds: Option<u64>,
        /// This process is to be the simulation.
        child: bool,
        print: bool,
        /// Other tests are asked for.
        skip: bool,
    }

    impl Arguments {
        fn parse() -> Result<Self, String> {
            let mut parsed = Self::default();
            let mut arguments = std::env::args().skip(1);
            while let Some(argument) = arguments.next() {
                let mut number = || {
                    let value = arguments.next().and_then(|value| value.parse().ok());
                    value.map(Some).ok_or_else(|| format!("{argument} needs a number"))
                };
                match argument.as_str() {
                    "--seed" => parsed.seed = number()?,
                    "--seeds" => parsed.seeds = number()?,
                    "--from" => parsed.from = number()?,
                    "--seconds" => parsed.seconds = number()?,
                    "--child" => parsed.child = true,
                    "--print" => parsed.print = true,
                    "--list" => parsed.skip = true,
                    // What the test harness of other targets understands.
                    flag if flag.starts_with('-') => {}
                    // The name of a test.
                    name => parsed.skip |= !"simulation".contains(name),
                }
            }
            Ok(parsed)
        }
    }

    pub(super) fn main() -> ExitCode {
        let arguments = match Arguments::parse() {
            Ok(arguments) => arguments,
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::FAILURE;
            }
        };
        if arguments.skip {
            return ExitCode::SUCCESS;
        }
        let seconds = arguments.seconds.unwrap_or(SECONDS);
        if let Some(seed) = arguments.seed {
            return if simulate(Plan { seed, seconds, print: arguments.print || !arguments.child }) {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            };
        }
        let from = arguments.from.unwrap_or(1);
        let passed = no_seed_breaks_a_promise(from, arguments.seeds.unwrap_or(SEEDS), seconds)
            & the_same_seed_twice_gives_the_same_trace(from, seconds);
        if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    /// Runs one simulation in this process; whether all promises were kept.
    fn simulate(plan: Plan) -> bool {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICKED.store(true, Ordering::Relaxed);
            usual(info);
        }));
        if plan.print {
            let filter = tracing_subscriber::EnvFilter::from_default_env();
            tracing_subscriber::fmt().with_env_filter(filter).without_time().with_ansi(false).init();
        }
        // A new thread: whatever this one keeps for itself, like the keys of its maps, begins there.
        let simulation = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
            let report = run(plan, &|| PANICKED.load(Ordering::Relaxed));
            (report, std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count))
        });
        let Ok(Ok((mut report, threads))) = simulation.map(std::thread::JoinHandle::join) else {
            println!("result seed={} FAILED the simulation panicked", plan.seed);
            return false;
        };
        // What another thread does is in no order.
        if threads != 2 && report.violation.is_none() {
            report.violation = Some(format!("{} threads were started", threads.saturating_sub(2)));
        }
        let counts: Vec<String> = report.counts.iter().map(|(what, count)| format!("{what}: {count}")).collect();
        println!("counts {}", counts.join(", "));
        println!(
            "result seed={} digest={:016x} events={} acknowledged={} attempted={} simulated={:.1}s {}",
            plan.seed,
            report.digest,
            report.events,
            report.acknowledged,
            report.attempted,
            report.elapsed.as_secs_f64(),
            report.violation.as_ref().map_or("ok", |_| "FAILED"),
        );
        if let Some(violation) = &report.violation {
            println!("violation {violation}");
        }
        report.violation.is_none()
    }

    /// Scenario: each seed is a cluster, its clients and its faults.
    /// Guarantees: what was acknowledged is there once, what was committed stays, reads see what was promised.
    fn no_seed_breaks_a_promise(from: u64, seeds: u64, seconds: u64) -> bool {
        let (next, failed, done) = (AtomicU64::new(from), Mutex::new(Vec::new()), AtomicU64::new(0));
        let acknowledged = AtomicU64::new(0);
        let begun = Instant::now();
        let workers = std::thread::available_parallelism().map_or(2, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= from + seeds {
                            return;
                        }
                        let child = Child::run(seed, seconds);
                        done.fetch_add(1, Ordering::Relaxed);
                        acknowledged.fetch_add(child.field("acknowledged").parse().unwrap_or(0), Ordering::Relaxed);
                        if !child.passed {
                            child.show();
                            failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(seed);
                        }
                    }
                });
            }
        });
        let failed = failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let acknowledged = acknowledged.into_inner();
        // What was never promised cannot be broken.
        let passed = failed.is_empty() && acknowledged > 0;
        println!(
            "test no_seed_breaks_a_promise ... {} ({} seeds, {} rows acknowledged, {} failed, {:.0} s)",
            if passed { "ok" } else { "FAILED" },
            done.into_inner(),
            acknowledged,
            failed.len(),
            begun.elapsed().as_secs_f64(),
        );
        passed
    }

    /// Guarantees: a seed is all that a simulation depends on.
    fn the_same_seed_twice_gives_the_same_trace(seed: u64, seconds: u64) -> bool {
        let [one, other] = [(); 2].map(|()| Child::run(seed, seconds));
        let (one, other) = (one.field("digest"), other.field("digest"));
        let same = !one.is_empty() && one == other;
        println!("test the_same_seed_twice_gives_the_same_trace ... {}", if same { "ok" } else { "FAILED" });
        if !same {
            println!("seed {seed} has the trace {one:?} and the trace {other:?}: compare the output of two runs of");
            println!("    make sim SEED={seed} SECONDS={seconds}");
        }
        same
    }

    /// What comes out of a pipe, as far as it can be read.
    fn read_all(pipe: Option<impl Read>) -> String {
        let mut text = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read until a failure is shown.
            let _ = pipe.read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// A simulation in a process of its own.
    struct Child {
        seed: u64,
        seconds: u64,
        passed: bool,
        output: String,
    }

    impl Child {
        fn run(seed: u64, seconds: u64) -> Self {
            let (passed, output) = match Self::outcome(seed, seconds) {
                Ok(outcome) => outcome,
                Err(error) => (false, error.to_string()),
            };
            Self { seed, seconds, passed, output }
        }

        fn outcome(seed: u64, seconds: u64) -> std::io::Result<(bool, String)> {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["--child", "--seed", &seed.to_string(), "--seconds", &seconds.to_string()]);
            let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
            let (out, err) = (child.stdout.take(), child.stderr.take());
            // Both are read while it runs: a pipe that is full would stop it.
            std::thread::scope(|scope| {
                let (errors, lines) = (scope.spawn(move || read_all(err)), scope.spawn(move || read_all(out)));
                let until = Instant::now() + TIMEOUT;
                let status = loop {
                    match child.try_wait()? {
                        Some(status) => break status,
                        None if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
                        None => {
                            child.kill()?;
                            break child.wait()?;
                        }
                    }
                };
                let (errors, lines) = (errors.join().unwrap_or_default(), lines.join().unwrap_or_default());
                Ok((status.success(), format!("{errors}{lines}{status}\n")))
            })
        }

        /// A field of the line with the result.
        fn field(&self, name: &str) -> String {
            let result = self.output.lines().find(|line| line.starts_with("result "));
            let fields = result.unwrap_or_default().split(' ').filter_map(|field| field.split_once('='));
            fields.filter(|(found, _)| *found == name).map(|(_, value)| value.to_owned()).next().unwrap_or_default()
        }

        fn show(&self) {
            let lines: Vec<&str> = self.output.lines().collect();
            let shown = lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n");
            let mut out = std::io::stdout().lock();
            // Nobody may be there to read it.
            let _ = writeln!(out, "{shown}\nseed {} failed; to see all of it:", self.seed);
            let _ = writeln!(out, "    make sim SEED={} SECONDS={}", self.seed, self.seconds);
        }
    }
}
