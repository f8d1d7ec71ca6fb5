# One server; a database and a role each for MLflow, Optuna and the state (deploy/compose/databases.sh makes them).
locals {
  roles = toset(["mlflow", "optuna", "raymlops"])
  urls = {
    for role in local.roles :
    role => "postgresql+psycopg://${role}:${random_password.role[role].result}@${aws_db_instance.this.endpoint}/${role}?sslmode=require"
  }
}

resource "random_password" "role" {
  for_each = local.roles

  length  = 40
  special = false
}

resource "aws_db_subnet_group" "this" {
  name       = var.name
  subnet_ids = data.aws_subnets.this.ids
}

resource "aws_security_group" "database" {
  name        = "${var.name}-database"
  description = "PostgreSQL of ${var.name}, for its nodes alone"
  vpc_id      = data.aws_vpc.this.id
}

resource "aws_vpc_security_group_ingress_rule" "database" {
  description                  = "nodes of the cluster"
  security_group_id            = aws_security_group.database.id
  referenced_security_group_id = aws_security_group.nodes.id
  ip_protocol                  = "tcp"
  from_port                    = 5432
  to_port                      = 5432
}

resource "aws_db_parameter_group" "this" {
  name   = var.name
  family = "postgres17"

  parameter {
    name  = "rds.force_ssl"
    value = "1"
  }

  parameter {
    name  = "log_statement"
    value = "ddl"
  }

  parameter {
    name  = "log_min_duration_statement"
    value = "1000"
  }
}

resource "aws_db_instance" "this" {
  #checkov:skip=CKV_AWS_118:enhanced monitoring needs a role of its own; metrics and performance insights are on
  #checkov:skip=CKV_AWS_161:SQLAlchemy takes a password, and no token that is new every 15 minutes
  identifier           = var.name
  engine               = "postgres"
  engine_version       = "17"
  instance_class       = var.database_class
  parameter_group_name = aws_db_parameter_group.this.name

  allocated_storage     = 50
  max_allocated_storage = 500
  storage_type          = "gp3"
  storage_encrypted     = true
  kms_key_id            = aws_kms_key.this.arn

  username                      = "postgres"
  manage_master_user_password   = true
  master_user_secret_kms_key_id = aws_kms_key.this.key_id

  db_subnet_group_name   = aws_db_subnet_group.this.name
  vpc_security_group_ids = [aws_security_group.database.id]
  publicly_accessible    = false
  multi_az               = true

  backup_retention_period         = 14
  copy_tags_to_snapshot           = true
  deletion_protection             = true
  final_snapshot_identifier       = "${var.name}-final"
  auto_minor_version_upgrade      = true
  performance_insights_enabled    = true
  performance_insights_kms_key_id = aws_kms_key.this.arn
  enabled_cloudwatch_logs_exports = ["postgresql", "upgrade"]
}
