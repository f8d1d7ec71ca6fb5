# What cluster.yaml needs on AWS: a bucket, a PostgreSQL server, a repository of images, and the identities of head and
# workers with no more rights than each uses. `ray up` starts the machines themselves, in the security group of this
# module. Databases and roles are made once, by the commands of the output next_step.

terraform {
  required_version = ">= 1.5"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.0"
    }
    random = {
      source  = "hashicorp/random"
      version = "~> 3.6"
    }
  }
}

provider "aws" {
  region = var.region

  default_tags {
    tags = var.tags
  }
}

data "aws_caller_identity" "this" {}

data "aws_vpc" "this" {
  id      = var.vpc_id
  default = var.vpc_id == null ? true : null
}

data "aws_subnets" "this" {
  filter {
    name   = "vpc-id"
    values = [data.aws_vpc.this.id]
  }
}

# One key for what is stored; the account decides who uses it.
resource "aws_kms_key" "this" {
  description         = "${var.name}: bucket, database and images"
  enable_key_rotation = true
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "kms:*"
      Resource  = "*"
      Principal = { AWS = "arn:aws:iam::${data.aws_caller_identity.this.account_id}:root" }
    }]
  })
}

# Ray finds the group by its name and adds no rule to one that has some (2.60).
resource "aws_security_group" "nodes" {
  #checkov:skip=CKV2_AWS_5:Ray attaches it to the machines that it starts
  name        = var.name
  description = "Nodes of ${var.name}: among themselves, SSH from the admin, endpoints inside the VPC"
  vpc_id      = data.aws_vpc.this.id
}

resource "aws_vpc_security_group_ingress_rule" "among_nodes" {
  description                  = "everything among the nodes"
  security_group_id            = aws_security_group.nodes.id
  referenced_security_group_id = aws_security_group.nodes.id
  ip_protocol                  = "-1"
}

resource "aws_vpc_security_group_ingress_rule" "ssh" {
  for_each = toset(var.admin_cidrs)

  description       = "ray up"
  security_group_id = aws_security_group.nodes.id
  cidr_ipv4         = each.key
  ip_protocol       = "tcp"
  from_port         = 22
  to_port           = 22
}

resource "aws_vpc_security_group_ingress_rule" "endpoints" {
  description       = "callers of the endpoints"
  security_group_id = aws_security_group.nodes.id
  cidr_ipv4         = data.aws_vpc.this.cidr_block
  ip_protocol       = "tcp"
  from_port         = 8000
  to_port           = 8000
}

resource "aws_vpc_security_group_egress_rule" "nodes" {
  description       = "packages, images and the cloud's own services"
  security_group_id = aws_security_group.nodes.id
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "-1"
}

resource "aws_ecr_repository" "this" {
  name                 = var.name
  image_tag_mutability = "IMMUTABLE"

  encryption_configuration {
    encryption_type = "KMS"
    kms_key         = aws_kms_key.this.arn
  }

  image_scanning_configuration {
    scan_on_push = true
  }
}

module "contract" {
  source = "../contract"

  storage_path = "s3://${aws_s3_bucket.this.id}/raymlops"
  tracking_uri = var.tracking_uri
  databases    = { optuna = local.urls.optuna, state = local.urls.raymlops }
  image        = aws_ecr_repository.this.repository_url
  identities   = { for kind, profile in aws_iam_instance_profile.this : kind => profile.name }
  cluster      = { cloud = "aws", name = var.name, region = var.region }
}
