//! Where published files go: a folder, or a store of objects named by a URL.
//!
//! Parsed by the configuration and by `weir verify`; nothing is contacted here.

use std::collections::BTreeMap;
use std::fmt;

/// Bucket, prefix and options of a store of objects. `Debug` keeps the values of options to itself: they may be secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreUrl {
    /// Which store.
    pub scheme: Scheme,
    /// Bucket or container.
    pub bucket: String,
    /// What stands before every key, without slashes at its ends; may be empty.
    pub prefix: String,
    /// Options of the store by name, in lower case.
    pub options: BTreeMap<String, String>,
}

/// The stores that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// S3, and what speaks its protocol.
    S3,
    /// Google Cloud Storage.
    Gs,
    /// Azure Blob Storage.
    Az,
}

impl Scheme {
    /// As in a URL.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Gs => "gs",
            Self::Az => "az",
        }
    }
}

impl StoreUrl {
    /// Whether a text is meant as a URL and not as a folder.
    pub fn is_url(text: &str) -> bool {
        text.contains("://")
    }

    /// Parses `s3://bucket/prefix`, `gs://…` or `az://…`, and checks that the store knows the options. The error says
    /// what was expected and holds no value of an option.
    pub fn parse(url: &str, options: BTreeMap<String, String>) -> Result<Self, String> {
        const FORM: &str = "s3://bucket/prefix, gs://bucket/prefix or az://container/prefix";
        let (scheme, rest) = url.split_once("://").ok_or(FORM)?;
        let scheme = match scheme {
            "s3" => Scheme::S3,
            "gs" => Scheme::Gs,
            "az" => Scheme::Az,
            _ => return Err(FORM.to_owned()),
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let legal =
            |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if bucket.is_empty() || !legal(bucket) {
            return Err(format!("{FORM}, with a name of a bucket of letters, digits, `-`, `_` and `.`"));
        }
        let prefix = prefix.trim_end_matches('/');
        let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && legal(part);
        if !(prefix.is_empty() || prefix.split('/').all(plain)) || prefix.len() > PREFIX_BYTES_MAX {
            return Err(format!(
                "{FORM}, with a prefix of at most {PREFIX_BYTES_MAX} letters, digits, `-`, `_`, `.` and single slashes"
            ));
        }
        let url = Self { scheme, bucket: bucket.to_owned(), prefix: prefix.to_owned(), options };
        #[cfg(feature = "cloud")]
        super::objects::check_options(&url)?;
        #[cfg(not(feature = "cloud"))]
        if !url.bucket.is_empty() {
            return Err(
                "a folder: this program was built without stores of objects (feature `cloud`)".to_owned()
            );
        }
        Ok(url)
    }
}

impl fmt::Display for StoreUrl {
    /// The URL, without a slash at its end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scheme, bucket, prefix, options: _ } = self;
        write!(f, "{}://{bucket}", scheme.as_str())?;
        if prefix.is_empty() { Ok(()) } else { write!(f, "/{prefix}") }
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options: Vec<&String> = self.options.keys().collect();
        f.debug_struct("StoreUrl").field("url", &self.to_string()).field("options", &options).finish()
    }
}

/// Keys may have 1024 bytes; a partition's folder and a name take less than 300.
const PREFIX_BYTES_MAX: usize = 512;

#[cfg(test)]
#[cfg(feature = "cloud")]
mod tests {
    use super::*;

    fn parse(url: &str, options: &[(&str, &str)]) -> Result<StoreUrl, String> {
        let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        StoreUrl::parse(url, options)
    }

    #[test]
    fn urls_are_a_store_a_bucket_and_a_prefix() {
        for (text, same) in [
            ("s3://b", "s3://b"),
            ("s3://b/", "s3://b"),
            ("gs://flow-logs/weir/prod/", "gs://flow-logs/weir/prod"),
            ("az://c/p", "az://c/p"),
        ] {
            assert_eq!(parse(text, &[]).unwrap().to_string(), same);
        }
        for wrong in [
            "/data",
            "s3://",
            "s3:///p",
            "http://h/p",
            "s3://b//p",
            "s3://b/../p",
            "s3://b/p?x=1",
            "s3://b@c/p",
        ] {
            assert!(parse(wrong, &[]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn options_are_the_stores_own_and_their_values_are_kept_to_ourselves() {
        let url = parse("s3://b", &[("endpoint", "http://h"), ("secret_access_key", "hidden")]).unwrap();
        assert!(!format!("{url:?}").contains("hidden"));
        assert!(format!("{url:?}").contains("secret_access_key"));
        let wrong = parse("s3://b", &[("endpiont", "hidden")]).unwrap_err();
        assert!(wrong.contains("endpiont") && !wrong.contains("hidden"), "{wrong}");
        assert!(parse("az://c", &[("secret_access_key", "x")]).is_err());
    }
}
