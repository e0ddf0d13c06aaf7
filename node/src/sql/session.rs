//! What is asked, how, and where the answer goes.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::StreamDecoder;
use reqwest::Response;

use super::client::{Client, Consistency};
use super::command::{Command, HELP};
use super::output::Output;
use super::splitter::What;
use super::table::{Expanded, Table, type_name};

/// Groups whose newest rows an eventual answer lacks.
const MISSING_GROUPS: &str = "x-signaldb-missing-groups";
const TABLES: &str = "SELECT table_schema AS dataset, table_name AS \"table\" FROM information_schema.tables \
     WHERE table_schema <> 'information_schema' ORDER BY table_schema = 'system', 1, 2";

/// How answers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
    Ndjson,
    Csv,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Self::Table => "table",
            Self::Json => "json",
            Self::Ndjson => "ndjson",
            Self::Csv => "csv",
        }
    }
}

/// A node, and how its answers are shown.
#[derive(Debug)]
pub(crate) struct Session {
    client: Client,
    format: Format,
    expanded: Expanded,
    consistency: Consistency,
    timing: bool,
    output: Output,
}

impl Session {
    pub(crate) fn new(client: Client, format: Format, expanded: Expanded, consistency: Consistency) -> Self {
        Self { client, format, expanded, consistency, timing: false, output: Output::standard() }
    }

    pub(crate) fn endpoint(&self) -> &str {
        self.client.endpoint()
    }

    /// Runs a statement or a command; breaks when that was the last.
    ///
    /// # Errors
    /// Those of the node, of the command line and of the output.
    ///
    /// Cancel safety: dropping the future cancels the query; the answer ends where it was.
    pub(crate) async fn run(&mut self, what: What<'_>) -> anyhow::Result<ControlFlow<()>> {
        match what {
            What::Statement(sql) => self.statement(sql).await?,
            What::Command(line) => match Command::parse(line)? {
                Command::Quit => return Ok(ControlFlow::Break(())),
                command => self.command(command).await?,
            },
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Writes what a cancelled query left behind.
    pub(crate) fn end_answer(&mut self) {
        // The error that ended it was told; this would be the same.
        let _ = self.output.flush();
    }

    async fn command(&mut self, command: Command) -> anyhow::Result<()> {
        match command {
            Command::Quit => {}
            Command::Help => eprintln!("{HELP}"),
            Command::Tables => self.statement(TABLES).await?,
            Command::Columns(table) if self.format == Format::Table => self.columns(&table).await?,
            Command::Columns(table) => self.statement(&format!("DESCRIBE {table}")).await?,
            Command::Timing(asked) => {
                self.timing = asked.unwrap_or(!self.timing);
                eprintln!("timing is {}", if self.timing { "on" } else { "off" });
            }
            Command::Expanded(asked) => {
                let other = if self.expanded == Expanded::On { Expanded::Off } else { Expanded::On };
                self.expanded = asked.unwrap_or(other);
                eprintln!(
                    "rows are lists of their columns: {}",
                    match self.expanded {
                        Expanded::On => "on",
                        Expanded::Off => "off",
                        Expanded::Auto => "when the table is wider than the terminal",
                    }
                );
            }
            Command::Format(asked) => {
                self.format = asked.unwrap_or(self.format);
                eprintln!("format is {}", self.format.name());
            }
            Command::Consistency(asked) => {
                self.consistency = asked.unwrap_or(self.consistency);
                eprintln!("consistency is {}", self.consistency.name());
            }
            Command::Output(Some(path)) => {
                self.output = Output::file(&path)?;
                eprintln!("answers go to {}", path.display());
            }
            Command::Output(None) => self.output = Output::standard(),
        }
        Ok(())
    }

    async fn statement(&mut self, sql: &str) -> anyhow::Result<()> {
        let begun = Instant::now();
        let format = if self.format == Format::Table { "arrow" } else { self.format.name() };
        let response = self.client.ask(sql, format, self.consistency).await?;
        let missing = response.headers().get(MISSING_GROUPS).and_then(|groups| groups.to_str().ok());
        let missing = missing.map(str::to_owned);
        match self.format {
            Format::Table => self.table(response).await?,
            _ => self.copy(response).await?,
        }
        self.output.flush()?;
        if let Some(groups) = missing {
            eprintln!("warning: the answer is partial; it lacks the newest rows of groups {groups}");
        }
        if self.timing {
            eprintln!("time: {:.3} ms", begun.elapsed().as_secs_f64() * 1000.0);
        }
        Ok(())
    }

    /// Bytes as they come.
    async fn copy(&mut self, response: Response) -> anyhow::Result<()> {
        let (mut body, mut last) = (Body(response), b'\n');
        while let Some(chunk) = body.next().await? {
            last = chunk.last().copied().unwrap_or(last);
            self.output.write(&chunk)?;
            self.output.flush()?;
        }
        if last == b'\n' { Ok(()) } else { self.output.write(b"\n") }
    }

    async fn table(&mut self, response: Response) -> anyhow::Result<()> {
        let (expanded, terminal) = (self.expanded, self.output.columns());
        let mut emit = |text: &str| self.output.write(text.as_bytes());
        let mut rows = Rows::new(response);
        let mut table = None;
        while let Some(batch) = rows.next().await? {
            let table = table.get_or_insert_with(|| Table::new(&batch.schema(), expanded, terminal));
            table.add(&batch, &mut emit)?;
        }
        let table = table.unwrap_or_else(|| Table::new(&rows.schema(), expanded, terminal));
        table.finish(&mut emit)
    }

    /// Columns of a table and their types, without nested types' many words.
    async fn columns(&mut self, table: &str) -> anyhow::Result<()> {
        let response = self.client.ask(&format!("SELECT * FROM {table} LIMIT 0"), "arrow", self.consistency).await?;
        let mut rows = Rows::new(response);
        while rows.next().await?.is_some() {}
        let schema = rows.schema();
        let fields = schema.fields();
        let names: StringArray = fields.iter().map(|field| Some(field.name().as_str())).collect();
        let types: StringArray = fields.iter().map(|field| Some(type_name(field.data_type()))).collect();
        let columns: [(&str, ArrayRef); 2] = [("column", Arc::new(names)), ("type", Arc::new(types))];
        let batch = RecordBatch::try_from_iter(columns).context("show the columns")?;
        let mut shown = Table::new(&batch.schema(), Expanded::Off, self.output.columns());
        let mut emit = |text: &str| self.output.write(text.as_bytes());
        shown.add(&batch, &mut emit)?;
        shown.finish(&mut emit)?;
        self.output.flush()
    }
}

/// What a node answers, as it comes.
struct Body(Response);

impl Body {
    async fn next(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        let chunk = self.0.chunk().await.context("the answer was cut off: the query failed after its first rows")?;
        Ok(chunk.map(Into::into))
    }
}

/// The rows of an Arrow stream.
struct Rows {
    body: Body,
    decoder: StreamDecoder,
    buffer: Buffer,
}

impl Rows {
    fn new(response: Response) -> Self {
        Self { body: Body(response), decoder: StreamDecoder::new(), buffer: Buffer::default() }
    }

    async fn next(&mut self) -> anyhow::Result<Option<RecordBatch>> {
        loop {
            if let Some(batch) = self.decoder.decode(&mut self.buffer).context("read the rows")? {
                return Ok(Some(batch));
            }
            match self.body.next().await? {
                Some(chunk) => self.buffer = Buffer::from(chunk),
                None => break,
            }
        }
        self.decoder.finish().context("the answer was cut off")?;
        ensure!(self.decoder.schema().is_some(), "the node answered without a schema; is it one of SignalDB?");
        Ok(None)
    }

    /// Known when all rows were read.
    fn schema(&self) -> SchemaRef {
        self.decoder.schema().unwrap_or_else(|| Arc::new(arrow::datatypes::Schema::empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn commands_change_how_answers_are_shown() {
        // Nobody listens there; none of these commands asks.
        let client = Client::new("http://127.0.0.1:1".to_owned(), None, None, None);
        let mut session = Session::new(client, Format::Table, Expanded::Auto, Consistency::Strong);
        for line in ["format csv", "x", "consistency eventual", "timing", "?", "o"] {
            assert!(session.run(What::Command(line)).await.expect(line).is_continue());
        }
        assert_eq!((session.format, session.expanded), (Format::Csv, Expanded::On));
        assert_eq!((session.consistency, session.timing), (Consistency::Eventual, true));
        for line in ["x", "timing off", "format"] {
            assert!(session.run(What::Command(line)).await.expect(line).is_continue());
        }
        assert_eq!((session.format, session.expanded, session.timing), (Format::Csv, Expanded::Off, false));
        assert!(session.run(What::Command("q")).await.expect("ends").is_break());
    }

    #[tokio::test]
    async fn a_node_that_is_not_there_is_named() {
        let client = Client::new("http://127.0.0.1:1".to_owned(), None, None, None);
        let mut session = Session::new(client, Format::Csv, Expanded::Auto, Consistency::Strong);
        let error = session.run(What::Statement("SELECT 1")).await.expect_err("nobody listens");
        assert!(error.to_string().contains("http://127.0.0.1:1; is it running?"), "{error:#}");
    }
}
