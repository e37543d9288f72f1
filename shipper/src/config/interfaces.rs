//! The keys under `capture.interfaces`. Called by the configuration.

use weir_common::config::{ConfigErrors, Values};

use crate::probe::{InterfaceConfig, LinkPattern, SELF};

/// How many elements a list may have.
const LIST_MAX: usize = 256;

/// What is captured at interfaces; `None` when that is off.
pub(super) fn parse(values: &Values, errors: &mut ConfigErrors) -> Option<InterfaceConfig> {
    let number = |path| u32::try_from(values.u64(path)).unwrap_or(u32::MAX);
    let config = InterfaceConfig {
        links: patterns(values, "capture.interfaces.links", errors),
        exclude: patterns(values, "capture.interfaces.exclude", errors),
        namespaces: namespaces(values, errors),
        flow_entries: number("capture.interfaces.flow_entries"),
        meta_entries: number("capture.interfaces.meta_entries"),
        vxlan_ports: vxlan_ports(values, errors),
        geneve_port: u16::try_from(values.u64("capture.interfaces.geneve_port")).unwrap_or(0),
    };
    values.bool("capture.interfaces.enabled").then_some(config)
}

fn patterns(values: &Values, path: &'static str, errors: &mut ConfigErrors) -> Vec<LinkPattern> {
    let mut found = Vec::new();
    for text in texts(values, path, "a list of texts", errors) {
        match text.parse::<LinkPattern>() {
            Ok(pattern) => found.push(pattern),
            Err(error) => errors.push(path, path, &text, &error.to_string()),
        }
    }
    found
}

fn namespaces(values: &Values, errors: &mut ConfigErrors) -> Vec<String> {
    const PATH: &str = "capture.interfaces.namespaces";
    let mut found = texts(values, PATH, "a list of texts", errors);
    found.retain(|text| {
        let folder = text.rsplit_once('/').map_or("", |(folder, _)| folder);
        let sound = text == SELF || (text.starts_with('/') && !folder.contains('*') && text.len() <= 4096);
        if !sound {
            errors.push(PATH, PATH, text, "`self`, or an absolute path with `*` in its last part at most");
        }
        sound
    });
    found
}

fn vxlan_ports(values: &Values, errors: &mut ConfigErrors) -> [u16; 2] {
    const PATH: &str = "capture.interfaces.vxlan_ports";
    let json = values.structure(PATH);
    let ports: Option<Vec<u16>> = json.as_array().and_then(|items| {
        items.iter().map(|item| item.as_u64().and_then(|port| u16::try_from(port).ok())).collect()
    });
    match ports.as_deref() {
        Some([]) => [0, 0],
        Some([port]) => [*port, 0],
        Some([first, second]) => [*first, *second],
        _ => {
            errors.push(PATH, PATH, &json.to_string(), "a list of at most 2 ports");
            [0, 0]
        }
    }
}

fn texts(values: &Values, path: &'static str, form: &str, errors: &mut ConfigErrors) -> Vec<String> {
    let json = values.structure(path);
    let list: Option<Vec<String>> = json
        .as_array()
        .filter(|items| items.len() <= LIST_MAX)
        .and_then(|items| items.iter().map(|item| item.as_str().map(str::to_owned)).collect());
    list.unwrap_or_else(|| {
        errors.push(path, path, &json.to_string(), form);
        Vec::new()
    })
}

#[cfg(test)]
mod tests {
    use super::super::Config;

    fn load(flags: &[(&str, &str)]) -> Result<Config, weir_common::config::ConfigErrors> {
        let flags: Vec<(String, String)> = flags
            .iter()
            .map(|(key, value)| (format!("capture.interfaces.{key}"), (*value).to_owned()))
            .collect();
        Config::load(None, &flags)
    }

    #[test]
    fn off_unless_asked_for_and_uplinks_unless_named() {
        assert_eq!(load(&[]).unwrap().capture.interfaces, None);
        let on = load(&[("enabled", "true")]).unwrap().capture.interfaces;
        assert_eq!(on, Some(super::InterfaceConfig::default()));
    }

    #[test]
    fn each_mistake_is_said() {
        let errors = load(&[
            ("links", "[\"a b\"]"),
            ("exclude", "[1]"),
            ("namespaces", "[\"/run/*/x\", \"blue\"]"),
            ("vxlan_ports", "[70000]"),
            ("geneve_port", "70000"),
        ])
        .unwrap_err();
        assert!(errors.iter().count() >= 1, "{errors}");
        let errors = load(&[
            ("links", "[\"a b\"]"),
            ("exclude", "[1]"),
            ("namespaces", "[\"/run/*/x\", \"blue\"]"),
            ("vxlan_ports", "[70000]"),
        ])
        .unwrap_err();
        assert_eq!(errors.iter().count(), 5, "{errors}");
    }
}
