//! Where a volume is, and calls that remove volumes and make them.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use serde_json::json;

use super::{Docker, Result, Volume};

impl Volume {
    fn option(&self, name: &str) -> Option<&String> {
        self.options.as_ref()?.get(name)
    }

    /// Returns docker's directory of the volume, and what its option `device` names on the same host.
    pub fn directories(&self) -> impl Iterator<Item = &String> {
        [&self.mountpoint].into_iter().chain(self.option("device").filter(|_| self.protocol().is_none()))
    }

    /// Returns what the volume is of another host's files, as `nfs:HOST/EXPORT`: once for each way that its options name
    /// the host, in `device` and by `addr=`, as mount.nfs(8) and mount.cifs(8) have them. Names are not looked up.
    pub fn exports(&self) -> Vec<PathBuf> {
        let (Some(protocol), Some(device)) = (self.protocol(), self.option("device")) else { return Vec::new() };
        let (host, path) = match protocol {
            "nfs" => device.split_once(":/"),
            _ => device.trim_start_matches('/').split_once('/'),
        }
        .unwrap_or(("", device));
        let options = self.option("o").map_or("", String::as_str).split(',');
        let addresses =
            options.filter_map(|option| option.strip_prefix("addr=").or_else(|| option.strip_prefix("ip=")));
        let hosts = addresses.chain([host]).map(|host| host.trim_matches(['[', ']']).to_lowercase());
        let hosts: BTreeSet<String> = hosts.filter(|host| !host.is_empty()).collect();
        // Windows minds no case in paths.
        let path = if protocol == "cifs" { path.to_lowercase() } else { path.into() };
        let parts = Path::new(&path).components().filter(|part| matches!(part, Component::Normal(_)));
        let path: PathBuf = parts.collect();
        hosts.iter().map(|host| Path::new(&format!("{protocol}:{host}")).join(&path)).collect()
    }

    /// Returns how another host serves the volume, if one does.
    fn protocol(&self) -> Option<&'static str> {
        match self.option("type")?.as_str() {
            "nfs" | "nfs4" => Some("nfs"),
            "cifs" | "smb3" | "smbfs" => Some("cifs"),
            _ => None,
        }
    }
}

impl Docker {
    /// `docker volume rm NAME`, to its end once it has begun: whoever makes the volume anew must know whether it is gone.
    ///
    /// # Errors
    /// When there is no such volume, a container uses it, stopped or not, or the user has already cancelled.
    pub fn remove_volume(&self, name: &str) -> Result<()> {
        self.call(["volume", "rm", "--", name]).whole()?.unlimited().run().map(drop)
    }

    /// `POST /volumes/create`, or `docker volume create --driver DRIVER --opt … --label … NAME`, also after a cancel: it may
    /// stand for one that was just removed.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn create_volume(&self, volume: &Volume) -> Result<()> {
        let Volume { name, driver, labels, options, .. } = volume;
        let wanted = json!({ "Name": name, "Driver": driver, "DriverOpts": options, "Labels": labels });
        // Others may take long.
        if driver == "local" && self.cleanup().post("/volumes/create", &wanted) {
            return Ok(());
        }
        let mut args = vec!["volume".into(), "create".into(), format!("--driver={}", volume.driver)];
        let pairs = |flag: &'static str, map: &Option<std::collections::BTreeMap<String, String>>| {
            let map = map.clone().unwrap_or_default();
            map.into_iter().map(move |(key, value)| format!("--{flag}={key}={value}")).collect::<Vec<_>>()
        };
        args.extend(pairs("opt", &volume.options));
        args.extend(pairs("label", &volume.labels));
        args.extend(["--".into(), volume.name.clone()]);
        self.call(args).cleanup().run().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_other_hosts_serve_is_one_place_however_it_is_written() {
        let of = |kind: &str, options: &str, device: &str| {
            let options = [("type", kind), ("o", options), ("device", device)];
            let options = options.map(|(name, value)| (name.to_string(), value.to_string()));
            let volume = Volume { mountpoint: "/v".into(), options: Some(options.into()), ..Volume::default() };
            let exports: Vec<String> = volume.exports().iter().map(|path| path.display().to_string()).collect();
            (exports.join(" "), volume.directories().count())
        };
        let nfs = |options, device| of("nfs", options, device).0;
        assert_eq!(nfs("addr=10.0.0.1,rw,vers=3", ":/srv/cache"), "nfs:10.0.0.1/srv/cache");
        assert_eq!(of("nfs4", "ro,addr=10.0.0.1", ":/srv//cache/"), ("nfs:10.0.0.1/srv/cache".into(), 1));
        assert_eq!(nfs("addr=10.0.0.1", "NAS:/srv"), "nfs:10.0.0.1/srv nfs:nas/srv");
        assert_eq!(nfs("addr=fe80::1", "[fe80::1]:/srv"), "nfs:fe80::1/srv");
        assert_eq!(nfs("addr=10.0.0.1", ":/"), "nfs:10.0.0.1/");
        assert_eq!(nfs("rw", ":/srv"), "");
        assert_eq!(of("cifs", "username=a,addr=10.0.0.1", "//nas/Share").0, "cifs:10.0.0.1/share cifs:nas/share");
        assert_eq!(of("none", "bind", "/srv"), (String::new(), 2));
    }
}
