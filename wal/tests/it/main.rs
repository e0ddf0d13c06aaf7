//! The log engine from outside.

mod golden;
