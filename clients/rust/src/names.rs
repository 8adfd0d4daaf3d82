//! Names, ids and patterns: what is well-formed, and what fits what.
//!
//! A name is tokens separated by dots. A pattern is a name in which a token may be `*` (any one token) or `**`
//! (any number of tokens, none included); the pattern `*` alone fits everything.
//!
//! Matching takes at most `pattern * name` steps whatever a peer sends: only the last `**` is ever taken up again.

use crate::error::{Error, Result};
use crate::limits::{ID_LENGTH, NAME_BYTES};

/// What names of the system begin with.
pub(crate) const RESERVED: &str = "exchange.";
/// The one of them that changes something.
pub(crate) const SET: &str = "exchange.state.set";

/// `text` for an error: quoted, without control characters, shortened.
pub(crate) fn shown(text: &str) -> String {
    if text.chars().count() <= 60 {
        return format!("'{}'", text.escape_default());
    }
    let head: String = text.chars().take(57).collect();
    format!("'{}...'", head.escape_default())
}

fn is_token(token: &str) -> bool {
    !token.is_empty() && !token.chars().any(|c| c.is_whitespace() || c.is_control() || c == '*')
}

fn check_length(text: &str, what: &str) -> Result<()> {
    if text.is_empty() {
        return Err(Error::Invalid(format!("the {what} is empty")));
    }
    if text.len() > NAME_BYTES {
        return Err(Error::LimitExceeded(format!("the {what} {} is longer than {NAME_BYTES} bytes", shown(text))));
    }
    Ok(())
}

/// Whether a message may bear this name.
pub(crate) fn check_name(name: &str) -> Result<()> {
    check_length(name, "name")?;
    if name.split('.').all(is_token) {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "{} is no name: it takes tokens separated by single dots, without white space, control characters or '*'",
        shown(name)
    )))
}

/// Whether this is a pattern.
pub(crate) fn check_pattern(pattern: &str) -> Result<()> {
    check_length(pattern, "pattern")?;
    if pattern.split('.').all(|token| token == "*" || token == "**" || is_token(token)) {
        return Ok(());
    }
    let shown = shown(pattern);
    Err(Error::Invalid(format!("{shown} is no pattern: it takes tokens, '*' or '**', separated by single dots")))
}

/// Whether this is an exchange id.
pub(crate) fn check_id(id: &str) -> Result<()> {
    if is_id(id) {
        return Ok(());
    }
    let shown = shown(id);
    Err(Error::Invalid(format!("{shown} is no exchange id: it takes 1 to {ID_LENGTH} of A-Z a-z 0-9 _ -")))
}

pub(crate) fn is_id(id: &str) -> bool {
    !id.is_empty() && id.len() <= ID_LENGTH && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// The exchange that made the message with this id: `<exchange>.<epoch>.<n>`. None if it is no id of a message.
pub(crate) fn origin(id: &str) -> Option<&str> {
    let mut parts = id.split('.');
    let (exchange, epoch, number) = (parts.next()?, parts.next()?, parts.next()?);
    let digits = |text: &str| (1..=20).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    (parts.next().is_none() && is_id(exchange) && digits(epoch) && digits(number)).then_some(exchange)
}

/// The same, or why not.
pub(crate) fn check_origin(id: &str) -> Result<&str> {
    origin(id).ok_or_else(|| Error::Invalid(format!("{} is no message id: <exchange>.<epoch>.<n>", shown(id))))
}

/// Whether messages of this name leave a trace: those of the system do not, unless they change something.
pub(crate) fn is_traced(name: &str) -> bool {
    !name.starts_with(RESERVED) || name == SET
}

/// Whether `name` fits `pattern`.
pub(crate) fn fits(pattern: &str, name: &str) -> bool {
    if pattern == "*" || pattern == "**" {
        return true;
    }
    if !pattern.contains('*') {
        return pattern == name;
    }
    let wanted: Vec<&str> = pattern.split('.').collect();
    let tokens: Vec<&str> = name.split('.').collect();
    let (mut w, mut n) = (0, 0);
    let mut again: Option<(usize, usize)> = None; // where the last `**` stands, and what it has taken up to
    while n < tokens.len() {
        if wanted.get(w) == Some(&"**") {
            again = Some((w, n));
            w += 1;
        } else if wanted.get(w).is_some_and(|token| *token == "*" || *token == tokens[n]) {
            w += 1;
            n += 1;
        } else if let Some((star, resume)) = again {
            again = Some((star, resume + 1));
            (w, n) = (star + 1, resume + 1);
        } else {
            return false;
        }
    }
    wanted[w..].iter().all(|token| *token == "**")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_tokens_with_dots() {
        for name in ["a", "user.login", "\u{e9}t\u{e9}.x-y_z", &"n".repeat(255)] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        for name in ["", ".", "a.", ".a", "a..b", "a b", "a\u{1}", "a.*", "a\u{a0}b"] {
            assert!(matches!(check_name(name), Err(Error::Invalid(_))), "{name}");
        }
        assert!(matches!(check_name(&"n".repeat(256)), Err(Error::LimitExceeded(_))));
    }

    #[test]
    fn ids_say_who_made_a_message() {
        assert_eq!(origin("shop.17.4"), Some("shop"));
        for id in ["", "shop", "shop.1", "shop.1.x", "a b.1.2", "shop.1.2.3", "shop..2"] {
            assert_eq!(origin(id), None, "{id}");
        }
    }

    #[test]
    fn patterns_fit() {
        for (pattern, name) in [
            ("*", "a.b.c"),
            ("a.*", "a.b"),
            ("a.**", "a"),
            ("a.**", "a.b.c"),
            ("**.c", "a.b.c"),
            ("a.**.c", "a.c"),
            ("a.**.c.*", "a.c.b.c.d"),
            ("a.b", "a.b"),
        ] {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("a.*", "a"), ("a.*", "a.b.c"), ("*.b", "a.c"), ("a.**.c", "a.b"), ("a", "b")] {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
    }
}
