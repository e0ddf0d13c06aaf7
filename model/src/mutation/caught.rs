//! A mutated server and the test that has to notice: the test binary runs itself, with the mutation in the environment of
//! the new process.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{Mutation, VARIABLE};

/// What decides between threads may take more than one attempt.
const RUNS_MAX: usize = 3;
/// How long one run may take.
const RUN_TIMEOUT: Duration = Duration::from_secs(240);
/// How often the run is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Runs `test` of this test binary, by its full name, with the mutation, and expects it to fail and to say `anomaly`. That
/// it passes without the mutation is seen where it runs with all others.
///
/// # Panics
/// When the mutation is not caught in [`RUNS_MAX`] runs, a failure for another reason being none, and when there is no test
/// of that name.
pub fn assert_caught(mutation: Mutation, test: &str, anomaly: &str) {
    let (name, mut others) = (mutation.name(), String::new());
    for run in 1..=RUNS_MAX {
        let (passed, said) = run_mutated(mutation, test);
        assert!(said.contains("running 1 test"), "there is no test {test} here:\n{said}");
        if !passed && said.contains(anomaly) {
            println!("{name} was caught in run {run} of {test}");
            return;
        }
        // Who is wrong may also fail to come so far.
        let outcome = if passed { "passed" } else { "failed for another reason" };
        others.push_str(&format!("run {run} {outcome}:\n{said}\n"));
    }
    panic!("{name} was not caught: in {RUNS_MAX} runs {test} did not fail for {anomaly:?}\n{others}");
}

/// Whether the test passed, and everything that it said.
fn run_mutated(mutation: Mutation, test: &str) -> (bool, String) {
    let this = std::env::current_exe().expect("a test binary knows where it is");
    let mut child = Command::new(this)
        .args(["--exact", test, "--test-threads", "1"])
        .env(VARIABLE, mutation.name())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the test binary runs");
    let (stdout, stderr) = (child.stdout.take().expect("is piped"), child.stderr.take().expect("is piped"));
    std::thread::scope(|scope| {
        let (out, err) = (scope.spawn(|| read(stdout)), scope.spawn(|| read(stderr)));
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().expect("the process can be asked") {
                break Some(status);
            }
            if begun.elapsed() > RUN_TIMEOUT {
                child.kill().expect("the process can be ended");
                child.wait().expect("the process can be asked");
                break None;
            }
            std::thread::sleep(POLL);
        };
        let said = [out, err].map(|reader| reader.join().expect("reads")).concat();
        let name = mutation.name();
        let status = status.unwrap_or_else(|| panic!("with {name} {test} did not end in {RUN_TIMEOUT:?}:\n{said}"));
        (status.success(), said)
    })
}

/// Everything that comes until the end; the bytes of a crash need not be text.
fn read(mut from: impl Read) -> String {
    let mut bytes = Vec::new();
    // What came before an error still tells something.
    let _ = from.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}
