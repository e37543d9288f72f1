//! Which links are captured: names, patterns, kinds, uplinks. Pure; called by the configuration and by `watch`.

use std::{fmt, str::FromStr};

use super::netlink::Link;

/// One condition that a link may meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkPattern {
    /// A default route goes out by it.
    Uplink,
    /// Its kind, as `ip -d link` has it; `physical` for hardware.
    Kind(String),
    /// Its name; `*` stands for any characters, none included.
    Name(String),
}

/// Why a text is no [`LinkPattern`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`uplink`, `kind:` and a kind, or a name of at most 15 characters in which * stands for any")]
pub struct BadPattern;

impl LinkPattern {
    /// Whether a link meets it.
    pub(crate) fn admits(&self, link: &Link, uplink: bool) -> bool {
        match self {
            Self::Uplink => uplink,
            Self::Kind(kind) if link.kind.is_empty() => kind == "physical" && link.name != "lo",
            Self::Kind(kind) => *kind == link.kind,
            Self::Name(pattern) => matches(pattern, &link.name),
        }
    }
}

impl FromStr for LinkPattern {
    type Err = BadPattern;

    fn from_str(text: &str) -> Result<Self, BadPattern> {
        let word = |text: &str| {
            let fits = !text.is_empty() && text.chars().filter(|c| *c != '*').count() <= 15;
            fits && text.len() <= 64
                && !text.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control())
        };
        match text.split_once(':') {
            None if text == "uplink" => Ok(Self::Uplink),
            Some(("kind", kind)) if word(kind) => Ok(Self::Kind(kind.to_owned())),
            Some(("kind", _)) => Err(BadPattern),
            _ if word(text) => Ok(Self::Name(text.to_owned())),
            _ => Err(BadPattern),
        }
    }
}

impl fmt::Display for LinkPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uplink => f.write_str("uplink"),
            Self::Kind(kind) => write!(f, "kind:{kind}"),
            Self::Name(pattern) => f.write_str(pattern),
        }
    }
}

/// Whether a name meets a pattern in which `*` stands for any characters.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = name.find(part) else { return false };
        name = &name[at + part.len()..];
    }
    name.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, name, is) in [
            ("eth0", "eth0", true),
            ("eth0", "eth01", false),
            ("eth*", "eth", true),
            ("*", "", true),
            ("*.10", "eth0.10", true),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "ac", false),
            ("ab*ba", "aba", false),
            ("**x", "yx", true),
        ] {
            assert_eq!(matches(pattern, name), is, "{pattern} {name}");
        }
    }

    #[test]
    fn a_link_is_chosen_by_name_kind_or_route() {
        let link = |name: &str, kind: &str| Link {
            index: 1,
            name: name.to_owned(),
            kind: kind.to_owned(),
            ethernet: true,
        };
        let pattern = |text: &str| text.parse::<LinkPattern>().unwrap();
        assert!(pattern("kind:veth").admits(&link("a", "veth"), false));
        assert!(!pattern("kind:physical").admits(&link("a", "veth"), false));
        assert!(pattern("kind:physical").admits(&link("eth0", ""), false));
        assert!(!pattern("kind:physical").admits(&link("lo", ""), false));
        assert!(
            pattern("uplink").admits(&link("a", ""), true)
                && !pattern("uplink").admits(&link("a", ""), false)
        );
        for text in ["", "kind:", "a b", "a/b", "0123456789abcdef"] {
            assert_eq!(text.parse::<LinkPattern>(), Err(BadPattern), "{text}");
        }
        for text in ["uplink", "kind:vlan", "br-*", "kindly", "a:b"] {
            assert_eq!(pattern(text).to_string(), text);
        }
    }
}
