//! Stretches of time.

/// From `begun` until before `ended`, nanoseconds since the run began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span {
    pub(crate) begun: u64,
    pub(crate) ended: u64,
}

impl Span {
    pub(crate) fn length(self) -> u64 {
        self.ended.saturating_sub(self.begun)
    }

    pub(crate) fn meets(self, other: Self) -> bool {
        self.begun < other.ended && other.begun < self.ended
    }

    /// What is left of it without `others`, which are in their order and do not overlap.
    pub(crate) fn without(self, others: &[Self]) -> Vec<Self> {
        let (mut left, mut begun) = (Vec::new(), self.begun);
        for other in others.iter().filter(|other| other.meets(self)) {
            if begun < other.begun {
                left.push(Self { begun, ended: other.begun });
            }
            begun = begun.max(other.ended);
        }
        if begun < self.ended {
            left.push(Self { begun, ended: self.ended });
        }
        left
    }
}

/// The time that is in any of them: in their order, and none touches the next.
pub(crate) fn union(spans: impl IntoIterator<Item = Span>) -> Vec<Span> {
    let mut sorted: Vec<Span> = spans.into_iter().filter(|span| span.length() > 0).collect();
    sorted.sort_unstable();
    let mut union: Vec<Span> = Vec::new();
    for span in sorted {
        match union.last_mut() {
            Some(last) if span.begun <= last.ended => last.ended = last.ended.max(span.ended),
            _ => union.push(span),
        }
    }
    union
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(begun: u64, ended: u64) -> Span {
        Span { begun, ended }
    }

    #[test]
    fn a_span_without_others_is_what_is_before_between_and_behind_them() {
        let others = [span(0, 2), span(4, 6), span(9, 20)];
        assert_eq!(span(1, 10).without(&others), [span(2, 4), span(6, 9)]);
        assert_eq!(span(3, 8).without(&others), [span(3, 4), span(6, 8)]);
        assert!(span(4, 6).without(&others).is_empty());
        assert_eq!(span(6, 9).without(&others), [span(6, 9)], "they only touch");
        assert_eq!(span(10, 30).without(&others), [span(20, 30)]);
    }

    #[test]
    fn a_union_has_all_of_the_time_and_no_moment_twice() {
        let spans = [span(5, 9), span(1, 3), span(8, 10), span(3, 4), span(6, 7), span(12, 12)];
        assert_eq!(union(spans), [span(1, 4), span(5, 10)]);
        assert!(union([]).is_empty());
    }
}
