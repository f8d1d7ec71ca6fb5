# What raymlops needs to know of an infrastructure, whoever made it. A module for a cloud calls this one with what it
# made; its outputs are what `--env prod` reads: env/prod.yaml of a project, and two files of the person who runs
# `ray up` (the head of cluster.yaml says what they are).

terraform {
  required_version = ">= 1.5"
}

variable "storage_path" {
  description = "Bucket of checkpoints, bundles and the prediction log, as pyarrow's URI; or a folder that every node mounts."
  type        = string

  validation {
    condition     = can(regex("^((s3|gs|abfss)://[^/\\s]+|/)", var.storage_path))
    error_message = "An s3://, gs:// or abfss:// URI, or an absolute path."
  }
}

variable "tracking_uri" {
  description = "MLflow, without credentials: https://HOST, or databricks."
  type        = string

  validation {
    condition     = can(regex("^(https?://[^@\\s]+|databricks(://\\S+)?)$", var.tracking_uri))
    error_message = "An http:// or https:// URI without a password, or databricks."
  }
}

variable "databases" {
  description = "SQL URLs, each of a database and a role of its own: optuna, and state, which only the head of a cluster gets."
  type        = object({ optuna = string, state = string })
  sensitive   = true

  validation {
    condition     = length(distinct([var.databases.optuna, var.databases.state])) == 2
    error_message = "Optuna and the state need a database each."
  }
}

variable "state_file" {
  description = "Where a head finds the file that state_url becomes: cluster.yaml copies it to ~/state_url."
  type        = string
  default     = "~/state_url"
}

variable "image" {
  description = "Repository of the image with raymlops and the recipe, without its tag; null where nodes install it."
  type        = string
  default     = null
}

variable "identities" {
  description = "Who a head and a worker are for the cloud: instance profile, service account or managed identity."
  type        = object({ head = string, worker = string })
}

variable "cluster" {
  description = "The cluster that `ray up` starts: its cloud, name and region."
  type        = object({ cloud = string, name = string, region = string })
}

locals {
  overlay = {
    serve    = { host = "0.0.0.0", proxy = "haproxy" }
    tracking = { uri = { env = "RAYMLOPS_TRACKING_URI" } }
    storage = merge(
      {
        path   = var.storage_path
        optuna = { env = "RAYMLOPS_OPTUNA_URL" }
        state  = { file = var.state_file }
      },
      startswith(var.storage_path, "/") ? { shared = true } : {},
    )
    cluster = { wait_s = 900 }
  }
  node_env = {
    RAYMLOPS_TRACKING_URI = var.tracking_uri
    RAYMLOPS_OPTUNA_URL   = var.databases.optuna
  }
}

output "overlay" {
  description = "env/prod.yaml of a project: no value in it is a secret."
  value       = yamlencode(local.overlay)
}

output "node_env" {
  description = "~/.raymlops/node.env: the variables that the overlay names."
  value       = join("", [for name, value in local.node_env : "${name}=${value}\n"])
  sensitive   = true
}

output "state_url" {
  description = "~/.raymlops/state_url, for the head alone."
  value       = "${var.databases.state}\n"
  sensitive   = true
}

output "image" {
  description = "Repository of images, for kubernetes.image."
  value       = var.image
}

output "cluster" {
  description = "What cluster.yaml says of the same cluster: cloud, name, region, and the identities of its nodes."
  value       = merge(var.cluster, var.identities)
}
