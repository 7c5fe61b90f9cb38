//! The part of CRIU's RPC protocol that we speak. Field numbers and values are those of CRIU's public `rpc.proto`.

/// `criu_req_type`.
pub mod kind {
    pub const DUMP: i32 = 1;
    pub const NOTIFY: i32 = 6;
    pub const CPUINFO_DUMP: i32 = 7;
    pub const CPUINFO_CHECK: i32 = 8;
    pub const VERSION: i32 = 10;
}

/// `criu_cg_mode::IGNORE`: cgroups are the runtime's business.
pub const CGROUPS_IGNORE: i32 = 0;
/// `criu_network_lock_method::SKIP`: the gate is ours.
pub const NETWORK_LOCK_SKIP: i32 = 3;

#[derive(Clone, PartialEq, prost::Message)]
pub struct ExtMount {
    #[prost(string, required, tag = "1")]
    pub key: String,
    #[prost(string, required, tag = "2")]
    pub val: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Opts {
    #[prost(int32, required, tag = "1", default = "-1")]
    pub images_dir_fd: i32,
    #[prost(int32, optional, tag = "2")]
    pub pid: Option<i32>,
    #[prost(bool, optional, tag = "3")]
    pub leave_running: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    pub tcp_established: Option<bool>,
    #[prost(bool, optional, tag = "8")]
    pub file_locks: Option<bool>,
    #[prost(int32, optional, tag = "9")]
    pub log_level: Option<i32>,
    #[prost(string, optional, tag = "10")]
    pub log_file: Option<String>,
    #[prost(bool, optional, tag = "12")]
    pub notify_scripts: Option<bool>,
    #[prost(string, optional, tag = "13")]
    pub root: Option<String>,
    #[prost(int32, optional, tag = "17")]
    pub work_dir_fd: Option<i32>,
    #[prost(message, repeated, tag = "23")]
    pub ext_mnt: Vec<ExtMount>,
    #[prost(int32, optional, tag = "34")]
    pub manage_cgroups_mode: Option<i32>,
    #[prost(uint32, optional, tag = "35")]
    pub ghost_limit: Option<u32>,
    #[prost(string, repeated, tag = "37")]
    pub external: Vec<String>,
    /// Seconds CRIU gives itself to stop the processes.
    #[prost(uint32, optional, tag = "45")]
    pub timeout: Option<u32>,
    #[prost(bool, optional, tag = "46")]
    pub tcp_skip_in_flight: Option<bool>,
    #[prost(int32, optional, tag = "64")]
    pub network_lock: Option<i32>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    #[prost(int32, required, tag = "1")]
    pub kind: i32,
    #[prost(message, optional, tag = "2")]
    pub opts: Option<Opts>,
    #[prost(bool, optional, tag = "3")]
    pub notify_success: Option<bool>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Notify {
    #[prost(string, optional, tag = "1")]
    pub script: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Version {
    #[prost(int32, required, tag = "1")]
    pub major: i32,
    #[prost(int32, required, tag = "2")]
    pub minor: i32,
    #[prost(int32, optional, tag = "4")]
    pub sublevel: Option<i32>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Response {
    #[prost(int32, required, tag = "1")]
    pub kind: i32,
    #[prost(bool, required, tag = "2")]
    pub success: bool,
    #[prost(message, optional, tag = "5")]
    pub notify: Option<Notify>,
    #[prost(int32, optional, tag = "7")]
    pub errno: Option<i32>,
    #[prost(string, optional, tag = "9")]
    pub errmsg: Option<String>,
    #[prost(message, optional, tag = "10")]
    pub version: Option<Version>,
}

/// `stats_entry` of `stats-dump`, the parts we report.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Stats {
    #[prost(message, optional, tag = "1")]
    pub dump: Option<DumpStats>,
}

/// Times in microseconds.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct DumpStats {
    #[prost(uint32, required, tag = "1")]
    pub freezing_time: u32,
    #[prost(uint32, required, tag = "2")]
    pub frozen_time: u32,
    #[prost(uint32, required, tag = "3")]
    pub memdump_time: u32,
    #[prost(uint32, required, tag = "4")]
    pub memwrite_time: u32,
    #[prost(uint64, required, tag = "7")]
    pub pages_written: u64,
    #[prost(uint64, optional, tag = "14")]
    pub shpages_written: Option<u64>,
}
