//! What `\d` and the like mean.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::ValueEnum;

use super::client::Consistency;
use super::session::Format;
use super::table::Expanded;

/// What `\?` says.
pub(crate) const HELP: &str = r"Statements end with ; and may have several lines. Commands are lines of their own:

  \d                          the tables
  \dt                         the same
  \d TABLE                    columns of a table: traces, staging.logs, system.files
  \x [on|off|auto]            each row as a list of its columns; auto: when the table is wider than the terminal
  \format [FORMAT]            table, json, ndjson or csv; alone it says which
  \o [FILE|FORMAT]            write answers to a file, or in a format; alone: to the terminal again
  \consistency [LEVEL]        strong sees all that was acknowledged before the query, eventual what the node has
  \timing [on|off]            say how long each answer took
  \q                          end; so does Ctrl-D
  \?                          this

Ctrl-C cancels the running query, on the node too. A line that begins with a blank is not kept in the history.";

/// A line that begins with `\`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Quit,
    Help,
    Tables,
    Columns(String),
    /// `None` turns it over.
    Timing(Option<bool>),
    /// `None` turns it over.
    Expanded(Option<Expanded>),
    /// `None` asks.
    Format(Option<Format>),
    /// `None` asks.
    Consistency(Option<Consistency>),
    /// `None` is the terminal.
    Output(Option<PathBuf>),
}

impl Command {
    /// Reads a command, without its `\`.
    ///
    /// # Errors
    /// When there is no such command, or not with that argument.
    pub(crate) fn parse(line: &str) -> anyhow::Result<Self> {
        let (name, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let argument = Some(argument.trim()).filter(|argument| !argument.is_empty());
        Ok(match (name, argument) {
            ("q" | "quit", None) => Self::Quit,
            ("?" | "h" | "help", None) => Self::Help,
            ("d" | "dt", None) => Self::Tables,
            ("d", Some(table)) => Self::Columns(table.to_owned()),
            ("timing", argument) => Self::Timing(argument.map(switch).transpose()?),
            ("x", argument) => Self::Expanded(argument.map(value).transpose()?),
            ("format", argument) => Self::Format(argument.map(value).transpose()?),
            ("consistency", argument) => Self::Consistency(argument.map(value).transpose()?),
            ("o", Some(argument)) => match Format::from_str(argument, false) {
                Ok(format) => Self::Format(Some(format)),
                Err(_) => Self::Output(Some(PathBuf::from(argument))),
            },
            ("o", None) => Self::Output(None),
            (_, argument) => {
                let known = matches!(name, "q" | "quit" | "?" | "h" | "help" | "dt");
                match argument.filter(|_| known) {
                    Some(argument) => bail!("\\{name} takes no argument, but there is {argument:?}"),
                    None => bail!("there is no command \\{name}; \\? lists them"),
                }
            }
        })
    }
}

fn switch(argument: &str) -> anyhow::Result<bool> {
    match argument {
        "on" => Ok(true),
        "off" => Ok(false),
        other => bail!("{other:?} is not on or off"),
    }
}

fn value<T: ValueEnum>(argument: &str) -> anyhow::Result<T> {
    let names = || {
        let values = T::value_variants().iter().filter_map(T::to_possible_value);
        values.map(|value| value.get_name().to_owned()).collect::<Vec<_>>().join(", ")
    };
    T::from_str(argument, false).ok().with_context(|| format!("{argument:?} is not one of {}", names()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_their_arguments() {
        for (line, expected) in [
            ("q", Command::Quit),
            ("?", Command::Help),
            ("d", Command::Tables),
            ("dt", Command::Tables),
            ("d  staging.logs", Command::Columns("staging.logs".to_owned())),
            ("timing", Command::Timing(None)),
            ("timing on", Command::Timing(Some(true))),
            ("x", Command::Expanded(None)),
            ("x auto", Command::Expanded(Some(Expanded::Auto))),
            ("format", Command::Format(None)),
            ("format ndjson", Command::Format(Some(Format::Ndjson))),
            ("o csv", Command::Format(Some(Format::Csv))),
            ("o spans.csv", Command::Output(Some("spans.csv".into()))),
            ("o", Command::Output(None)),
            ("consistency eventual", Command::Consistency(Some(Consistency::Eventual))),
        ] {
            assert_eq!(Command::parse(line).expect(line), expected, "{line}");
        }
    }

    #[test]
    fn errors_say_what_would_be_right() {
        for (line, expected) in [
            ("nope", "\\? lists them"),
            ("", "\\? lists them"),
            ("format xml", "table, json, ndjson, csv"),
            ("consistency weak", "strong, eventual"),
            ("timing 1", "on or off"),
            ("q now", "takes no argument"),
        ] {
            let error = Command::parse(line).expect_err(line).to_string();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }

    #[test]
    fn the_help_names_every_command() {
        for name in ["d", "dt", "x", "format", "o", "consistency", "timing", "q", "?"] {
            let command = format!("\\{name}");
            assert!(HELP.lines().any(|line| line.split_whitespace().next() == Some(command.as_str())), "{name}");
        }
    }
}
