//! Values as people write them: `"500ms"`, `"64MiB"`, `"60%"`, `"min(5GiB, 10%)"`.

use std::fmt;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A duration with a unit: `us`, `ms`, `s`, `m`, `h`, `d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub Duration);

impl Time {
    pub(super) const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    pub(super) const fn from_millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }
}

/// An amount of bytes with a unit: `B`, `KiB`, `MiB`, `GiB`, `TiB`, `KB`, `MB`, `GB`, `TB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteSize(pub u64);

/// `min(5GiB, 10%)`: the smaller of an amount and a part of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskReserve {
    pub bytes: u64,
    pub percent: u8,
}

/// `60%` of the machine's memory, or an amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryLimit {
    Percent(u8),
    Bytes(u64),
}

/// A text that is never shown.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "\"\"" } else { "\"***\"" })
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.0.is_empty() { "" } else { "***" })
    }
}

/// `postgres://user:password@host/db` without the password.
pub fn hide_password(address: &str) -> String {
    let hidden = address.split_once("://").and_then(|(scheme, rest)| {
        let (login, host) = rest.rsplit_once('@')?;
        let (user, _) = login.split_once(':')?;
        Some(format!("{scheme}://{user}:***@{host}"))
    });
    hidden.unwrap_or_else(|| address.to_owned())
}

/// A number and what follows it.
fn number_and_unit(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    Some((number, text[end..].trim()))
}

fn parse_time(text: &str) -> Option<Duration> {
    let (number, unit) = number_and_unit(text)?;
    let seconds = match unit {
        "us" => number / 1e6,
        "ms" => number / 1e3,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        "d" => number * 86_400.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(seconds).ok()
}

fn parse_bytes(text: &str) -> Option<u64> {
    let (number, unit) = number_and_unit(text)?;
    let factor: f64 = match unit {
        "B" | "" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1_048_576.0,
        "GiB" => 1_073_741_824.0,
        "TiB" => 1_099_511_627_776.0,
        "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "TB" => 1e12,
        _ => return None,
    };
    Some((number * factor) as u64)
}

fn parse_percent(text: &str) -> Option<u8> {
    let percent: u8 = text.trim().strip_suffix('%')?.trim().parse().ok()?;
    (percent <= 100).then_some(percent)
}

fn parse_reserve(text: &str) -> Option<DiskReserve> {
    let inner = text.trim().strip_prefix("min(").and_then(|text| text.strip_suffix(')'));
    if let Some((bytes, percent)) = inner.and_then(|inner| inner.split_once(',')) {
        return Some(DiskReserve { bytes: parse_bytes(bytes)?, percent: parse_percent(percent)? });
    }
    if let Some(percent) = parse_percent(text) {
        return Some(DiskReserve { bytes: u64::MAX, percent });
    }
    Some(DiskReserve { bytes: parse_bytes(text)?, percent: 100 })
}

fn parse_limit(text: &str) -> Option<MemoryLimit> {
    parse_percent(text).map(MemoryLimit::Percent).or_else(|| parse_bytes(text).map(MemoryLimit::Bytes))
}

/// A size may be a bare number of bytes; what needs a unit refuses it with the same words as any other mistake.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a text with a unit or a number")]
enum TextOrNumber {
    Number(i64),
    Text(String),
}

impl TextOrNumber {
    fn into_text(self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => text,
        }
    }
}

macro_rules! from_text {
    ($type:ty, $parse:expr, $expected:literal) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = TextOrNumber::deserialize(deserializer)?.into_text();
                let parse: fn(&str) -> Option<$type> = $parse;
                parse(&text).ok_or_else(|| D::Error::custom(format!("{text:?} is not {}", $expected)))
            }
        }
    };
}

from_text!(Time, |text| parse_time(text).map(Time), "a duration such as \"500ms\", \"30s\" or \"10m\"");
from_text!(ByteSize, |text| parse_bytes(text).map(ByteSize), "a size such as \"64MiB\" or \"5GiB\"");
from_text!(DiskReserve, parse_reserve, "a reserve such as \"5GiB\", \"10%\" or \"min(5GiB, 10%)\"");
from_text!(MemoryLimit, parse_limit, "a limit such as \"60%\" or \"8GiB\"");

fn bytes_text(bytes: u64) -> String {
    for (unit, factor) in [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes >= factor && bytes.is_multiple_of(factor) {
            return format!("{}{unit}", bytes / factor);
        }
    }
    format!("{bytes}B")
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{}ms", self.0.as_millis()))
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&bytes_text(self.0))
    }
}

impl Serialize for DiskReserve {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("min({}, {}%)", bytes_text(self.bytes), self.percent))
    }
}

impl Serialize for MemoryLimit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Percent(percent) => serializer.serialize_str(&format!("{percent}%")),
            Self::Bytes(bytes) => serializer.serialize_str(&bytes_text(*bytes)),
        }
    }
}

impl MemoryLimit {
    /// Bytes on this machine: of the cgroup if it is limited, else of RAM.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => machine_memory() / 100 * u64::from(percent),
        }
    }
}

fn machine_memory() -> u64 {
    let cgroup = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    let total = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
    });
    let total = total.unwrap_or(4 << 30);
    cgroup.map_or(total, |limit: u64| limit.min(total))
}
