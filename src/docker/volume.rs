//! Where a volume is, and calls that remove volumes and make them.

use super::{Docker, Result, Volume};

impl Volume {
    /// Returns docker's directory of the volume, and what its option `device` names.
    pub fn directories(&self) -> impl Iterator<Item = &String> {
        [&self.mountpoint].into_iter().chain(self.options.as_ref().and_then(|options| options.get("device")))
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

    /// `docker volume create --driver DRIVER --opt … --label … NAME`, also after a cancel: it may stand for one that was
    /// just removed.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn create_volume(&self, volume: &Volume) -> Result<()> {
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
