//! The simulation is a program without cargo's test harness: what it makes of the harness's flags is tested here.

#[path = "../sim/arguments.rs"]
mod arguments;

use arguments::{Asked, KEEPS_PROMISES, KEEPS_TRACES, One, SEEDS_VARIABLE, Seeds, USAGE, parse};

fn asked(line: &str, seeds: Option<&str>) -> Result<Asked, String> {
    parse(line.split_whitespace().map(str::to_owned), seeds.map(str::to_owned))
}

fn run(tests: &[&'static str], from: u64, count: u64, seconds: u64) -> Asked {
    Asked::Run { tests: tests.to_vec(), seeds: Seeds { from, count, seconds } }
}

/// Guarantees: flags of libtest and nextest neither hide the simulation nor are taken for names of tests.
#[test]
fn flags_of_a_test_harness_change_no_simulation() {
    let all = [KEEPS_PROMISES, KEEPS_TRACES];
    for line in [
        "",
        "--test-threads 1",
        "--test-threads=1 --nocapture",
        "--format pretty --color never -q",
        "--include-ignored --show-output -Z unstable-options --logfile /tmp/log",
        "--report-time --shuffle --shuffle-seed 7",
    ] {
        assert_eq!(asked(line, None), Ok(run(&all, 1, 10, 12)), "{line:?}");
    }
    assert_eq!(asked("--seeds 200 --from 5 --test-threads 2 --seconds=60", None), Ok(run(&all, 5, 200, 60)));
}

/// Guarantees: a name selects as it does elsewhere, and what is listed is what runs.
#[test]
fn names_select_tests_of_the_simulation() {
    for (line, tests) in [
        ("promise", &[KEEPS_PROMISES][..]),
        ("promise trace", &[KEEPS_PROMISES, KEEPS_TRACES][..]),
        ("--exact promise", &[][..]),
        ("--exact the_same_seed_twice_gives_the_same_trace --nocapture", &[KEEPS_TRACES][..]),
        ("--skip promise", &[KEEPS_TRACES][..]),
        ("mutations::", &[][..]),
        ("--ignored", &[][..]),
        ("--bench", &[][..]),
    ] {
        assert_eq!(asked(line, None), Ok(run(tests, 1, 10, 12)), "{line:?}");
    }
    let list = |tests: &[&'static str], terse| Ok(Asked::List { tests: tests.to_vec(), terse });
    assert_eq!(asked("--list", None), list(&[KEEPS_PROMISES, KEEPS_TRACES], false));
    assert_eq!(asked("--list --format terse", None), list(&[KEEPS_PROMISES, KEEPS_TRACES], true));
    assert_eq!(asked("--list --format terse --ignored", None), list(&[], true));
}

/// Guarantees: the number of seeds is the one that was said, else that of the environment; nonsense is named.
#[test]
fn seeds_are_counted_as_asked_and_nonsense_is_named() {
    let all = [KEEPS_PROMISES, KEEPS_TRACES];
    assert_eq!(asked("", Some("200")), Ok(run(&all, 1, 200, 12)));
    assert_eq!(asked("--seeds 3", Some("200")), Ok(run(&all, 1, 3, 12)));
    let one = |seed, child, trace| Ok(Asked::Simulate(One { seed, seconds: 12, child, trace }));
    assert_eq!(asked("--seed 1234", Some("200")), one(1234, false, true));
    assert_eq!(asked("--child --seed 7", None), one(7, true, false));
    assert_eq!(asked("--child --seed 7 --trace", None), one(7, true, true));
    assert_eq!(asked("--help --seed 1", None), Ok(Asked::Help));
    for (line, seeds, named) in [
        ("--seed", None, "--seed needs a value"),
        ("--seeds many", None, "\"many\""),
        ("", Some("many"), SEEDS_VARIABLE),
        ("--sed 7", None, "--sed is not understood"),
    ] {
        let refused = asked(line, seeds).expect_err("is nonsense");
        assert!(refused.contains(named), "{line:?}: {refused}");
    }
    assert!(USAGE.contains(SEEDS_VARIABLE));
}
