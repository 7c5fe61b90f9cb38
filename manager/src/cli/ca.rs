//! `ha-manager ca`: the cluster's authority and the certificates of its nodes, made on whichever machine keeps the key.

use chrono::{DateTime, Utc};
use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::{CliError, args, print};
use crate::tls::{
    ca::{self, CaError},
    files::{self, CA_CERT, CA_KEY, NODE_CERT, NODE_KEY},
    identity::{self, Facts, Subject},
};

pub fn run(command: args::Ca) -> Result<(), CliError> {
    match command {
        args::Ca::Init(args) => init(&args),
        args::Ca::Issue(args) => issue(&args),
    }
}

fn init(args::CaInit { cluster, dir, days, force }: &args::CaInit) -> Result<(), CliError> {
    let made = ca::authority(cluster.as_str(), Utc::now(), *days).map_err(|error| failed(error.into()))?;
    files::write_authority(dir, &made, *force).map_err(|error| CliError::Input(crate::chain(&error)))?;
    let until = read(&made.certificate)?;
    let shown = dir.display();
    print(&format!(
        "The authority of cluster {cluster}, valid until {until}:\n  \
         {shown}/{CA_KEY}  its private key (0600): whoever has it can make nodes of this cluster\n  \
         {shown}/{CA_CERT}  its certificate: `ha-manager ca issue` puts it beside every node's\n\
         Next, for each node: ha-manager ca issue NODE --dir {shown}"
    ))
}

fn issue(args::CaIssue { node, dir, out, days, force }: &args::CaIssue) -> Result<(), CliError> {
    let authority = files::authority(dir).map_err(|error| {
        CliError::Input(format!("{}; `ha-manager ca init` makes an authority, --dir names it", crate::chain(&error)))
    })?;
    let unfit = |error: CaError| match error {
        CaError::Unfit => {
            let dir = dir.display();
            CliError::Input(format!("{dir}/{CA_KEY} belongs to no certificate in {dir}/{CA_CERT}"))
        }
        error => failed(error),
    };
    let signer = ca::own_certificate(&authority).map_err(unfit)?;
    let Facts { subject, ends, .. } = facts(&signer)?;
    let Subject::Authority { cluster } = subject else {
        return Err(CliError::Input(format!("{}/{CA_CERT} is not the certificate of an authority", dir.display())));
    };
    let wanted = Subject::Node { cluster: cluster.clone(), node: node.clone() };
    let made = ca::issue(&authority, &wanted, Utc::now(), *days).map_err(unfit)?;
    let out = out.clone().unwrap_or_else(|| dir.join(node.as_str()));
    let ca = (!files::believes(&out, &signer)).then_some(authority.certificate.as_str());
    files::write_node(&out, ca, &made, *force).map_err(|error| CliError::Input(crate::chain(&error)))?;
    let until = read(&made.certificate)?;
    let clamped = if until == day(ends) { ", the last day of its authority" } else { "" };
    let shown = out.display();
    print(&format!(
        "The certificate of node {node} of cluster {cluster}, valid until {until}{clamped}:\n  \
         {shown}/{NODE_KEY}  its private key (0600)\n  \
         {shown}/{NODE_CERT}  its certificate\n  \
         {shown}/{CA_CERT}    the authority's\n\
         All three belong on {node} only, in the directory that `dir` of [tls] in its configuration names \
         (default /etc/ha-manager/tls)."
    ))
}

fn failed(error: CaError) -> CliError {
    CliError::Input(format!("the certificate cannot be made: {error}"))
}

/// A certificate's last day.
fn read(pem: &str) -> Result<String, CliError> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes());
    let der = der.map_err(|error| CliError::Input(format!("the certificate cannot be read: {error}")))?;
    Ok(day(facts(&der)?.ends))
}

fn facts(der: &CertificateDer<'_>) -> Result<Facts, CliError> {
    identity::read(der).map_err(|error| CliError::Input(format!("the certificate cannot be read: {error}")))
}

fn day(at: i64) -> String {
    DateTime::from_timestamp(at, 0).map(|at| at.date_naive().to_string()).unwrap_or_default()
}
