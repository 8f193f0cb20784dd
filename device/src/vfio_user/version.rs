// SPDX-License-Identifier: Apache-2.0 OR MIT

//! VERSION: what client and server can do, in JSON.

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::backend::Refusal;
use super::wire::{MAJOR, MAX_DATA, MAX_FDS, MINOR, PAGE, Version};

/// The errno of a version that is not spoken here, and of nothing else. It is the connection's last.
pub(super) const NOT_SPOKEN: Errno = Errno::PROTONOSUPPORT;

/// What both sides can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Session {
    /// Descriptors that the client takes in one message.
    pub(super) client_fds: u64,
    /// Bytes that one region access may transfer.
    pub(super) max_data: u64,
    /// DMA maps that may exist at a time.
    pub(super) max_dma_maps: u64,
}

#[derive(Deserialize, Serialize, Default)]
#[serde(default)]
struct VersionData {
    capabilities: Capabilities,
}

/// With the values that hold for a side which does not name its own. Members that are not here (`migration`,
/// `twin_socket`, `write_multiple`) offer what this server does not take up.
#[derive(Deserialize, Serialize)]
#[serde(default)]
struct Capabilities {
    max_msg_fds: u64,
    max_data_xfer_size: u64,
    max_dma_maps: u64,
    pgsizes: u64,
}

impl Default for Capabilities {
    fn default() -> Self {
        Capabilities { max_msg_fds: 1, max_data_xfer_size: 1 << 20, max_dma_maps: 65535, pgsizes: 4096 }
    }
}

/// Agrees with a client; the answer, without its JSON's terminator, goes to `reply`.
pub(super) fn negotiate(
    version: Version,
    data: &[u8],
    max_dma_maps: u32,
    reply: &mut Vec<u8>,
) -> Result<(Version, Session), Refusal> {
    if version.major != MAJOR {
        return Err(Refusal::new(NOT_SPOKEN, format!("major version {}", version.major)));
    }
    let theirs = parse(data)?.capabilities;
    if theirs.pgsizes & PAGE == 0 {
        return Err(Refusal::invalid("no page size in common"));
    }
    let session = Session {
        client_fds: theirs.max_msg_fds,
        max_data: theirs.max_data_xfer_size.min(MAX_DATA as u64),
        max_dma_maps: theirs.max_dma_maps.min(max_dma_maps.into()),
    };
    let capabilities = Capabilities {
        max_msg_fds: MAX_FDS as u64,
        max_data_xfer_size: session.max_data,
        max_dma_maps: session.max_dma_maps,
        pgsizes: PAGE,
    };
    serde_json::to_writer(reply, &VersionData { capabilities })
        .map_err(|error| Refusal::new(Errno::NOMEM, error.to_string()))?;
    // Never more than theirs: there is no smaller one.
    Ok((Version { major: MAJOR, minor: MINOR }, session))
}

fn parse(data: &[u8]) -> Result<VersionData, Refusal> {
    let json = match data {
        [] => return Ok(VersionData::default()),
        [json @ .., 0] => json,
        _ => return Err(Refusal::invalid("the version data do not end with NUL")),
    };
    serde_json::from_slice(json).map_err(|error| Refusal::new(Errno::INVAL, format!("version data: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(data: &str) -> Result<Session, Errno> {
        let version = Version { major: 0, minor: 7 };
        let mut reply = Vec::new();
        let (version, session) =
            negotiate(version, data.as_bytes(), 1000, &mut reply).map_err(|no| no.errno)?;
        assert_eq!((version.major, version.minor), (0, 0));
        let text = String::from_utf8(reply).unwrap();
        let member = |name: &str, value: u64| {
            assert!(text.contains(&format!("\"{name}\":{value}")), "{name} {value}: {text}");
        };
        member("max_msg_fds", 16);
        member("max_data_xfer_size", session.max_data);
        member("max_dma_maps", session.max_dma_maps);
        member("pgsizes", 4096);
        Ok(session)
    }

    #[test]
    fn the_smaller_of_both_holds() {
        let default = Session { client_fds: 1, max_data: 1 << 20, max_dma_maps: 1000 };
        for nothing in
            ["", "{}\0", "{\"capabilities\":{}}\0", "{\"other\":[1,{}],\"capabilities\":{\"x\":2}}\0"]
        {
            assert_eq!(with(nothing), Ok(default), "{nothing:?}");
        }
        let small = "{\"capabilities\":{\"max_msg_fds\":0,\"max_data_xfer_size\":4,\"max_dma_maps\":3}}\0";
        assert_eq!(with(small), Ok(Session { client_fds: 0, max_data: 4, max_dma_maps: 3 }));
        let large = "{\"capabilities\":{\"max_msg_fds\":999,\"max_data_xfer_size\":18446744073709551615,\
                     \"pgsizes\":2101248}}\0";
        assert_eq!(with(large), Ok(Session { client_fds: 999, ..default }));
    }

    #[test]
    fn what_is_not_such_json_is_refused() {
        let deep = "[".repeat(2000) + "\0";
        for bad in [
            "\0",
            "{}",
            "{\0",
            "{}\0\0",
            "[]\0{}",
            "nul\0",
            "7\0",
            "{\"capabilities\":null}\0",
            "{\"capabilities\":{\"max_msg_fds\":-1}}\0",
            "{\"capabilities\":{\"max_msg_fds\":\"8\"}}\0",
            "{\"capabilities\":{\"max_msg_fds\":1,\"max_msg_fds\":2}}\0",
            "{\"capabilities\":{\"max_data_xfer_size\":1e99}}\0",
            "{\"capabilities\":{\"pgsizes\":8192}}\0",
            &deep,
        ] {
            assert_eq!(with(bad), Err(Errno::INVAL), "{bad:?}");
        }
        let mut reply = Vec::new();
        let major = negotiate(Version { major: 1, minor: 0 }, b"", 1, &mut reply);
        assert_eq!(major.map_err(|no| no.errno).unwrap_err(), Errno::PROTONOSUPPORT);
    }
}
