//! Where statements and commands end: pure, and without an idea of SQL beyond its texts, names and comments.

/// What runs at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What<'a> {
    /// Without the `;`.
    Statement(&'a str),
    /// A line that begins with `\`, without it.
    Command(&'a str),
}

/// The first whole piece of a text, and where it is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece<'a> {
    pub(crate) what: What<'a>,
    pub(crate) begin: usize,
    /// Where the next one may begin.
    pub(crate) end: usize,
}

/// The first piece of `text`; `None` while it is not whole. In an `ended` text everything is whole.
pub(crate) fn first(text: &str, ended: bool) -> Option<Piece<'_>> {
    let begin = blanks(text)?;
    let rest = &text[begin..];
    if let Some(command) = rest.strip_prefix('\\') {
        let line = command.find('\n');
        if line.is_none() && !ended {
            return None;
        }
        let line = line.unwrap_or(command.len());
        let what = What::Command(command[..line].trim().trim_end_matches(';').trim_end());
        return Some(Piece { what, begin, end: (begin + 1 + line + 1).min(text.len()) });
    }
    let mut at = 0;
    while at < rest.len() {
        if rest.as_bytes()[at] == b';' {
            return Some(Piece { what: What::Statement(rest[..at].trim_end()), begin, end: begin + at + 1 });
        }
        match token(rest, at) {
            Some(end) => at = end,
            None => break,
        }
    }
    let statement = rest.trim_end();
    (ended && !statement.is_empty()).then_some(Piece { what: What::Statement(statement), begin, end: text.len() })
}

/// Whether nothing is missing: only blanks and comments are left behind the last whole piece. The line that a shell reads
/// has no end, so commands are whole.
pub(crate) fn is_whole(text: &str) -> bool {
    let mut rest = text;
    while let Some(piece) = first(rest, false) {
        rest = &rest[piece.end..];
    }
    match blanks(rest) {
        Some(begin) => rest[begin..].is_empty() || rest[begin..].starts_with('\\'),
        None => false,
    }
}

/// How many bytes of blanks, comments and lone `;` there are; `None` in the middle of a comment.
fn blanks(text: &str) -> Option<usize> {
    let mut at = 0;
    while let Some(next) = text[at..].chars().next() {
        if next.is_whitespace() || next == ';' {
            at += next.len_utf8();
        } else if text[at..].starts_with("--") || text[at..].starts_with("/*") {
            at = token(text, at)?;
        } else {
            break;
        }
    }
    Some(at)
}

/// Where the text, quoted name, comment or single character ends that begins at `at`; `None` when its end is missing.
fn token(text: &str, at: usize) -> Option<usize> {
    let rest = &text[at..];
    let mut bytes = rest.bytes();
    match (bytes.next()?, bytes.next()) {
        (b'\'', _) if is_escaping(&text[..at]) => escaped(rest).map(|len| at + len),
        // A doubled quote ends one text and begins another, which comes to the same.
        (quote @ (b'\'' | b'"' | b'`'), _) => rest[1..].find(char::from(quote)).map(|len| at + len + 2),
        (b'-', Some(b'-')) => Some(rest.find('\n').map_or(text.len(), |len| at + len + 1)),
        (b'/', Some(b'*')) => comment(rest).map(|len| at + len),
        (b'$', _) => match dollar_tag(rest) {
            Some(tag) => rest[tag.len()..].find(tag).map(|len| at + len + 2 * tag.len()),
            None => Some(at + 1),
        },
        _ => rest.chars().next().map(|next| at + next.len_utf8()),
    }
}

/// Whether a text behind `before` may escape its quotes: `E'it\'s'`.
fn is_escaping(before: &str) -> bool {
    let mut last = before.chars().rev();
    let prefix = last.next().is_some_and(|last| matches!(last, 'e' | 'E'));
    prefix && !last.next().is_some_and(|last| last.is_alphanumeric() || last == '_')
}

/// Bytes of a text whose quotes may be escaped.
fn escaped(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\'' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    None
}

/// Bytes of a comment, which may hold others.
fn comment(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let (mut at, mut depth) = (0, 0);
    while at < bytes.len() {
        match bytes.get(at..at + 2) {
            Some(b"/*") => (at, depth) = (at + 2, depth + 1),
            Some(b"*/") => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

/// `$$` or `$tag$`; `$1` is a parameter.
fn dollar_tag(text: &str) -> Option<&str> {
    let name = text[1..].find('$')?;
    let tag = &text[1..=name];
    let named = tag.chars().all(|c| c.is_alphanumeric() || c == '_') && !tag.starts_with(|c: char| c.is_ascii_digit());
    named.then(|| &text[..name + 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All pieces, commands with their backslash, and whether nothing is left over.
    fn split(text: &str, ended: bool) -> (Vec<String>, bool) {
        let (mut pieces, mut rest) = (Vec::new(), text);
        while let Some(piece) = first(rest, ended) {
            pieces.push(match piece.what {
                What::Statement(text) => text.to_owned(),
                What::Command(text) => format!("\\{text}"),
            });
            rest = &rest[piece.end..];
        }
        (pieces, blanks(rest) == Some(rest.len()))
    }

    #[test]
    fn statements_end_at_a_semicolon_that_is_none_of_a_text_or_comment() {
        for (text, expected) in [
            ("SELECT 1;SELECT 2;", vec!["SELECT 1", "SELECT 2"]),
            ("SELECT 1\n  , 2 ;\n;; SELECT 3;", vec!["SELECT 1\n  , 2", "SELECT 3"]),
            ("SELECT ';', 'it''s;';", vec!["SELECT ';', 'it''s;'"]),
            ("SELECT \"a;b\", `c;d`;", vec!["SELECT \"a;b\", `c;d`"]),
            ("SELECT E'it\\'s;', type'x';", vec!["SELECT E'it\\'s;', type'x'"]),
            ("SELECT nameE'\\';", vec!["SELECT nameE'\\'"]),
            ("SELECT $$a;b$$, $x$;$$;$x$;", vec!["SELECT $$a;b$$, $x$;$$;$x$"]),
            ("SELECT $1, $2;", vec!["SELECT $1, $2"]),
            ("SELECT 1 -- no; end\n+ 1;", vec!["SELECT 1 -- no; end\n+ 1"]),
            ("/* a; /* b; */ c; */ SELECT 1 /* ; */;", vec!["SELECT 1 /* ; */"]),
            ("-- only; a comment\nSELECT 'é;ö';", vec!["SELECT 'é;ö'"]),
            ("SELECT 1 - 2, 3 / 4 * 5;", vec!["SELECT 1 - 2, 3 / 4 * 5"]),
        ] {
            assert_eq!(split(text, false), (expected.into_iter().map(str::to_owned).collect(), true), "{text}");
        }
    }

    #[test]
    fn what_is_not_whole_waits_for_its_end() {
        for text in ["SELECT 1", "SELECT 'a;", "SELECT \"a;", "/* SELECT 1;", "SELECT $$;", "SELECT E'\\';", "\\d"] {
            assert_eq!(first(text, false), None, "{text}");
            assert_eq!(is_whole(text), text == "\\d", "{text}");
        }
        for text in ["", " \n", "SELECT 1;", "SELECT 1; -- done", "\\d\nSELECT 1;", "\\d traces", ";"] {
            assert!(is_whole(text), "{text}");
        }
        assert!(!is_whole("SELECT 1; SELECT"));
    }

    #[test]
    fn the_end_of_the_text_ends_a_statement() {
        assert_eq!(split("SELECT 1;\nSELECT 2\n", true).0, ["SELECT 1", "SELECT 2"]);
        assert_eq!(split("SELECT 'a", true).0, ["SELECT 'a"]);
        assert_eq!(split("-- nothing", true).0, [] as [&str; 0]);
        assert_eq!(split(" ;\n", true).0, [] as [&str; 0]);
    }

    #[test]
    fn commands_are_lines_between_statements() {
        let text = "\\timing on\n\\d traces;\nSELECT '\n\\x\n';\n -- then\n \\q";
        assert_eq!(split(text, true).0, ["\\timing on", "\\d traces", "SELECT '\n\\x\n'", "\\q"]);
        let piece = first(" \\x\nSELECT", false).expect("a command");
        assert_eq!((piece.begin, piece.end), (1, 4));
    }

    #[test]
    fn any_text_comes_to_an_end() {
        for text in ["'", "$", "$a", "$$", "$é$", "/", "/*", "-", "--", "\\", "E'", "E'\\", "é", "`", "\\\n", "*/"] {
            for ended in [false, true] {
                split(text, ended);
            }
            is_whole(text);
        }
    }
}
