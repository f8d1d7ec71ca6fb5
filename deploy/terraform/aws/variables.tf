variable "tracking_uri" {
  description = "An MLflow server of yours, https://HOST without credentials, or databricks."
  type        = string
}

variable "bucket" {
  description = "Name of the bucket to make; unique on all of AWS."
  type        = string
}

variable "name" {
  description = "Name of the cluster, as cluster.yaml has it, and beginning of what is made."
  type        = string
  default     = "raymlops"
}

variable "region" {
  description = "Region, as cluster.yaml has it."
  type        = string
  default     = "us-east-1"
}

variable "vpc_id" {
  description = "VPC of the nodes; default: the account's default VPC, which Ray takes too."
  type        = string
  default     = null
}

variable "admin_cidrs" {
  description = "From where `ray up` reaches nodes by SSH: your address, such as [\"203.0.113.7/32\"]."
  type        = list(string)

  validation {
    condition     = !contains(var.admin_cidrs, "0.0.0.0/0")
    error_message = "Not the whole internet: name your address."
  }
}

variable "database_class" {
  description = "Instance class of the PostgreSQL server."
  type        = string
  default     = "db.t4g.medium"
}

variable "tags" {
  description = "Tags of everything that is made, such as those by which cost is told apart."
  type        = map(string)
  default     = { project = "raymlops" }
}
