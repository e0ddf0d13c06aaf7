//! What the log looks like from outside: segments, groups, damage.

use std::fmt;

use serde::Serialize;

use super::groups_text;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Report {
    /// Directory of the log.
    pub(super) dir: String,
    /// The next start goes on as it is: nothing is lost that no earlier start dealt with.
    pub(super) sound: bool,
    pub(super) segments: Vec<Segment>,
    pub(super) groups: Vec<Group>,
    pub(super) torn_tail: Option<Torn>,
    pub(super) damages: Vec<Damage>,
    /// Why there may have been groups of which there is no other trace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) unlisted: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) bytes: u64,
    pub(super) records: u64,
    pub(super) sealed: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Group {
    pub(super) group: u32,
    /// Indexes of the first and the last entry; none when the group holds no entries.
    pub(super) first: Option<u64>,
    pub(super) last: Option<u64>,
    pub(super) committed: Option<u64>,
    pub(super) purged: Option<u64>,
    pub(super) term: Option<u64>,
    pub(super) voted_for: Option<u64>,
    pub(super) trust: Option<String>,
    /// What damage took: from this index on, up to that one as far as it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) first_lost: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last_lost: Option<u64>,
    /// A vote that was on disk may be lost.
    pub(super) lost_vote: bool,
}

/// The end of a write that nobody was told about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Torn {
    pub(super) segment: u64,
    pub(super) offset: u64,
    pub(super) bytes: u64,
    pub(super) reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Damage {
    pub(super) segment: u64,
    pub(super) offset: u64,
    /// None listed: nobody can tell.
    pub(super) groups: Vec<u32>,
    /// Nothing is lost by it.
    pub(super) harmless: bool,
    /// An earlier start dealt with it.
    pub(super) settled: bool,
    pub(super) reason: String,
}

impl Report {
    pub(super) fn group(&self, number: u32) -> Group {
        let found = self.groups.iter().find(|group| group.group == number);
        found.cloned().unwrap_or(Group { group: number, ..Group::default() })
    }

    /// Groups that lost something, and the first index that is lost.
    pub(super) fn lost(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.groups.iter().filter_map(|group| Some((group.group, group.first_lost?)))
    }

    /// Damage and torn end, a line each, or that there is none.
    pub(super) fn damage(&self) -> String {
        let mut lines: Vec<String> = self.damages.iter().map(Damage::to_string).collect();
        let votes: Vec<u32> = self.groups.iter().filter(|group| group.lost_vote).map(|group| group.group).collect();
        if !votes.is_empty() {
            lines.push(format!("a vote may be lost of {}", groups_text(&votes)));
        }
        lines.extend(
            self.unlisted.as_ref().map(|reason| format!("groups without any other trace may be lost: {reason}")),
        );
        if self.sound {
            let further = if lines.is_empty() { "" } else { " further" };
            let (dir, segments, groups) = (&self.dir, self.segments.len(), self.groups.len());
            let records: u64 = self.segments.iter().map(|segment| segment.records).sum();
            lines.push(format!("no{further} damage in {dir}: {segments} segments, {records} records, {groups} groups"));
        }
        lines.extend(self.torn_tail.as_ref().map(Torn::to_string));
        lines.join("\n")
    }
}

impl Group {
    pub(super) fn entries(&self) -> u64 {
        self.first.zip(self.last).map_or(0, |(first, last)| last + 1 - first)
    }

    /// The first index that the group does not hold.
    pub(super) fn end(&self) -> u64 {
        self.last.or(self.purged).map_or(0, |last| last + 1)
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { segment, offset, reason, .. } = self;
        write!(f, "damage in segment {segment:06} at offset {offset}: {reason}; ")?;
        match self {
            Self { settled: true, .. } => f.write_str("an earlier start dealt with it"),
            Self { harmless: true, .. } => f.write_str("nothing is lost by it"),
            Self { groups, .. } => write!(f, "it concerns {}", groups_text(groups)),
        }
    }
}

impl fmt::Display for Torn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { segment, offset, bytes, reason } = self;
        write!(
            f,
            "torn end in segment {segment:06} at offset {offset}: {bytes} bytes of a write that nobody was told to be \
             on disk ({reason}); the next start cuts them off"
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "log in {}\n", self.dir)?;
        let segments: Vec<[String; 4]> = self
            .segments
            .iter()
            .map(|segment| {
                let sealed = if segment.sealed { "yes" } else { "no" };
                let Segment { number, bytes, records, .. } = segment;
                [format!("{number:06}"), bytes.to_string(), records.to_string(), sealed.to_owned()]
            })
            .collect();
        writeln!(f, "{}", table(["segment", "bytes", "records", "sealed"], &segments))?;
        let number = |number: Option<u64>| number.map_or("-".to_owned(), |number| number.to_string());
        let groups: Vec<[String; 9]> = self
            .groups
            .iter()
            .map(|group| {
                [
                    group.group.to_string(),
                    group.entries().to_string(),
                    number(group.first),
                    number(group.last),
                    number(group.committed),
                    number(group.purged),
                    number(group.term),
                    number(group.voted_for),
                    group.trust.clone().unwrap_or("-".to_owned()),
                ]
            })
            .collect();
        let head = ["group", "entries", "first", "last", "committed", "purged", "term", "voted for", "trust"];
        writeln!(f, "{}", table(head, &groups))?;
        f.write_str(&self.damage())
    }
}

/// Lines of cells; columns are as wide as their widest cell and aligned to the right, but for the last.
pub(super) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let widths: [usize; N] =
        std::array::from_fn(|at| rows.iter().map(|row| row[at].len()).fold(head[at].len(), usize::max));
    let line = |cells: [&str; N]| -> String {
        let cell = |(at, cell): (usize, &str)| {
            let width = widths[at];
            if at + 1 == N { format!("{cell}\n") } else { format!("{cell:>width$}  ") }
        };
        cells.into_iter().enumerate().map(cell).collect()
    };
    std::iter::once(line(head)).chain(rows.iter().map(|row| line(row.each_ref().map(String::as_str)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["1".to_owned(), "long".to_owned()], ["100".to_owned(), "x".to_owned()]];
        assert_eq!(table(["n", "name"], &rows), "  n  name\n  1  long\n100  x\n");
    }

    #[test]
    fn damage_names_segment_offset_and_groups() {
        let damage = |groups: &[u32]| Damage {
            segment: 3,
            offset: 70,
            groups: groups.to_vec(),
            harmless: false,
            settled: false,
            reason: "record payload checksum mismatch".to_owned(),
        };
        let expected = "damage in segment 000003 at offset 70: record payload checksum mismatch; it concerns ";
        let all: [(&[u32], &str); 3] =
            [(&[], "possibly every group"), (&[4], "group 4"), (&[5, 1, 4, 4], "groups 1, 4 and 5")];
        for (groups, text) in all {
            assert_eq!(damage(groups).to_string(), format!("{expected}{text}"));
        }
        let settled = Damage { settled: true, ..damage(&[4]) };
        assert!(settled.to_string().ends_with("an earlier start dealt with it"));
    }
}
