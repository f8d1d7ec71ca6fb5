# The contract without a cloud: a folder, a SQLite file each for Optuna and the state, no identities. It shows what
# the outputs are, and needs no provider that has to be downloaded. For one machine alone, as SQLite is.

terraform {
  required_version = ">= 1.5"
}

variable "folder" {
  description = "Absolute path of a folder, which is made."
  type        = string

  validation {
    condition     = can(regex("^/[^?#%\\s]*$", var.folder))
    error_message = "An absolute path without white space, ?, # and %, since it becomes a part of URLs."
  }
}

variable "tracking_uri" {
  description = "MLflow, as `raymlops up` starts it."
  type        = string
  default     = "http://127.0.0.1:5000"
}

resource "terraform_data" "bucket" {
  input = "${var.folder}/bucket"

  provisioner "local-exec" {
    command     = "umask 077; mkdir -p \"$FOLDER\""
    environment = { FOLDER = self.input }
  }
}

resource "terraform_data" "database" {
  for_each = toset(["optuna", "state"])
  input    = "sqlite:///${var.folder}/${each.key}.db"

  depends_on = [terraform_data.bucket]
}

module "contract" {
  source = "../contract"

  storage_path = terraform_data.bucket.output
  tracking_uri = var.tracking_uri
  databases    = { for name, database in terraform_data.database : name => database.output }
  identities   = { head = "", worker = "" }
  state_file   = "~/.raymlops/state_url" # no launcher copies it elsewhere
  cluster      = { cloud = "local", name = "raymlops", region = "" }
}

output "overlay" {
  value = module.contract.overlay
}

output "node_env" {
  value     = module.contract.node_env
  sensitive = true
}

output "state_url" {
  value     = module.contract.state_url
  sensitive = true
}

output "image" {
  value = module.contract.image
}

output "cluster" {
  value = module.contract.cluster
}
