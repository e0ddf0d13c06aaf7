//! The spans of one trace as a tree.

use std::collections::HashMap;

use super::ast::{Form, Intrinsic, Relation, Scope};
use super::spans::SpanColumns;
use super::value::Value;

/// A span: its row in some columns.
#[derive(Debug, Clone, Copy)]
pub(super) struct SpanRef<'a> {
    pub(super) columns: &'a SpanColumns<'a>,
    pub(super) row: usize,
}

/// All spans of a trace that were found, by start.
#[derive(Debug)]
pub(super) struct Trace<'a> {
    pub(super) spans: Vec<SpanRef<'a>>,
    /// Where the parent of each span is.
    parents: Vec<Option<usize>>,
    children: Vec<Vec<usize>>,
    /// Every span behind its parent; those in a circle of parents are not in it.
    order: Vec<usize>,
    /// Numbers of a walk through the tree, when a span is entered and left; 0 for those in a circle.
    left: Vec<i64>,
    right: Vec<i64>,
    root: Option<usize>,
    pub(super) start: u64,
    pub(super) end: u64,
}

impl<'a> Trace<'a> {
    pub(super) fn new(mut spans: Vec<SpanRef<'a>>) -> Self {
        spans.sort_by_key(|span| (span.columns.start(span.row), span.columns.span_id(span.row)));
        let mut by_id: HashMap<&[u8], usize> = HashMap::with_capacity(spans.len());
        for (at, span) in spans.iter().enumerate() {
            by_id.entry(span.columns.span_id(span.row)).or_insert(at);
        }
        let parent = |at: usize, span: &SpanRef<'a>| {
            let id = span.columns.parent_span_id(span.row);
            by_id.get(id).copied().filter(|parent| !id.is_empty() && *parent != at)
        };
        let parents: Vec<Option<usize>> = spans.iter().enumerate().map(|(at, span)| parent(at, span)).collect();
        let mut children = vec![Vec::new(); spans.len()];
        for (at, parent) in parents.iter().enumerate() {
            if let Some(parent) = parent {
                children[*parent].push(at);
            }
        }
        let root = spans.iter().position(|span| span.columns.parent_span_id(span.row).is_empty());
        let start = spans.first().map_or(0, |span| span.columns.start(span.row));
        let end = spans.iter().map(|span| span.columns.end(span.row)).max().unwrap_or(0);
        let mut trace = Self {
            left: vec![0; spans.len()],
            right: vec![0; spans.len()],
            order: Vec::new(),
            spans,
            parents,
            children,
            root,
            start,
            end,
        };
        trace.walk();
        trace
    }

    /// Numbers the spans. Not by recursion: a trace may be as deep as it has spans.
    fn walk(&mut self) {
        let mut number = 0;
        for top in (0..self.spans.len()).filter(|at| self.parents[*at].is_none()).collect::<Vec<_>>() {
            let mut stack = vec![(top, 0)];
            while let Some((at, child)) = stack.pop() {
                if child == 0 {
                    number += 1;
                    self.left[at] = number;
                    self.order.push(at);
                }
                match self.children[at].get(child) {
                    Some(next) => {
                        stack.push((at, child + 1));
                        stack.push((*next, 0));
                    }
                    None => {
                        number += 1;
                        self.right[at] = number;
                    }
                }
            }
        }
    }

    pub(super) fn root_name(&self) -> Option<&'a str> {
        self.root.map(|at| self.spans[at].columns.name(self.spans[at].row))
    }

    pub(super) fn root_service(&self) -> Option<&'a str> {
        self.root.map(|at| self.spans[at].columns.service_name(self.spans[at].row))
    }

    pub(super) fn duration(&self) -> i64 {
        i64::try_from(self.end - self.start).unwrap_or(i64::MAX)
    }

    pub(super) fn attribute(&self, at: usize, parent: bool, scope: Scope, name: &str) -> Value<'a> {
        let of = if parent { self.parents[at] } else { Some(at) };
        of.map_or(Value::Nil, |at| self.spans[at].columns.attribute(self.spans[at].row, scope, name))
    }

    pub(super) fn intrinsic(&self, at: usize, intrinsic: Intrinsic) -> Value<'a> {
        let number = |count: usize| Value::Int(i64::try_from(count).unwrap_or(i64::MAX));
        match intrinsic {
            Intrinsic::ChildCount => number(self.children[at].len()),
            Intrinsic::RootName => self.root_name().map_or(Value::Nil, Value::text),
            Intrinsic::RootServiceName => self.root_service().map_or(Value::Nil, Value::text),
            Intrinsic::TraceDuration => Value::Duration(self.duration()),
            Intrinsic::NestedSetLeft => Value::Int(self.left[at]),
            Intrinsic::NestedSetRight => Value::Int(self.right[at]),
            Intrinsic::NestedSetParent => Value::Int(match self.parents[at] {
                Some(parent) => self.left[parent],
                None if self.spans[at].columns.parent_span_id(self.spans[at].row).is_empty() => -1,
                // Its parent is not there.
                None => 0,
            }),
            own => self.spans[at].columns.intrinsic(self.spans[at].row, own),
        }
    }

    /// What a structural operator keeps of two sets of spans.
    pub(super) fn relate(&self, form: Form, relation: Relation, left: &[usize], right: &[usize]) -> Vec<usize> {
        let related = self.related_to(relation, &self.mask(left));
        match form {
            Form::Plain => right.iter().copied().filter(|at| related[*at]).collect(),
            Form::Negated => right.iter().copied().filter(|at| !related[*at]).collect(),
            Form::Union => {
                let opposite = match relation {
                    Relation::Child => Relation::Parent,
                    Relation::Parent => Relation::Child,
                    Relation::Descendant => Relation::Ancestor,
                    Relation::Ancestor => Relation::Descendant,
                    Relation::Sibling => Relation::Sibling,
                };
                let back = self.related_to(opposite, &self.mask(right));
                let mut both: Vec<usize> = right.iter().copied().filter(|at| related[*at]).collect();
                both.extend(left.iter().copied().filter(|at| back[*at]));
                both.sort_unstable();
                both.dedup();
                both
            }
        }
    }

    fn mask(&self, spans: &[usize]) -> Vec<bool> {
        let mut mask = vec![false; self.spans.len()];
        for at in spans {
            mask[*at] = true;
        }
        mask
    }

    /// The spans that are a child, a parent, ... of one in `of`.
    fn related_to(&self, relation: Relation, of: &[bool]) -> Vec<bool> {
        let mut related = vec![false; of.len()];
        match relation {
            Relation::Child => {
                for (at, parent) in self.parents.iter().enumerate() {
                    related[at] = parent.is_some_and(|parent| of[parent]);
                }
            }
            Relation::Descendant => {
                for at in &self.order {
                    related[*at] = self.parents[*at].is_some_and(|parent| of[parent] || related[parent]);
                }
            }
            Relation::Parent => {
                for (at, parent) in self.parents.iter().enumerate() {
                    if let Some(parent) = parent.filter(|_| of[at]) {
                        related[parent] = true;
                    }
                }
            }
            Relation::Ancestor => {
                for at in self.order.iter().rev() {
                    if let Some(parent) = self.parents[*at].filter(|_| of[*at] || related[*at]) {
                        related[parent] = true;
                    }
                }
            }
            Relation::Sibling => {
                // Also where the parent itself is not there.
                let parent = |at: usize| self.spans[at].columns.parent_span_id(self.spans[at].row);
                let mut counts: HashMap<&[u8], usize> = HashMap::new();
                for at in (0..of.len()).filter(|at| of[*at] && !parent(*at).is_empty()) {
                    *counts.entry(parent(at)).or_default() += 1;
                }
                for (at, related) in related.iter_mut().enumerate() {
                    // A span is not its own sibling.
                    *related = counts.get(parent(at)).is_some_and(|count| *count > usize::from(of[at]));
                }
            }
        }
        related
    }
}
